"""Gzipped JSON lines whose bytes depend on their content only, so that writing a part twice changes nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from typing import Any


def pack(lines: Iterable[dict[str, Any]]) -> bytes:
    """Return the objects as gzipped JSON lines."""
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)


def unpack(body: bytes) -> list[dict[str, Any]]:
    """Return the objects of gzipped JSON lines."""
    # not splitlines(): U+2028 and its kin are legal inside a JSON string and no end of a line
    return [json.loads(line) for line in gzip.decompress(body).split(b"\n") if line]

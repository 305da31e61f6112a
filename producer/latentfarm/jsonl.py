"""Gzipped JSON lines whose bytes depend on their content only, so that writing a part twice changes nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from typing import Any

# made once: json.dumps makes a new one at each call that asks for its own separators
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dump_line(fields: dict[str, Any]) -> str:
    """Return the object as one line, its end included."""
    return _encode(fields) + "\n"


def compress(lines: bytes) -> bytes:
    """Return the lines gzipped."""
    return gzip.compress(lines, compresslevel=6, mtime=0)


def pack(lines: Iterable[dict[str, Any]]) -> bytes:
    """Return the objects as gzipped JSON lines."""
    return compress("".join(map(dump_line, lines)).encode())


def unpack(body: bytes) -> list[dict[str, Any]]:
    """Return the objects of gzipped JSON lines."""
    # not splitlines(): U+2028 and its kin are legal inside a JSON string and no end of a line
    return [json.loads(line) for line in gzip.decompress(body).split(b"\n") if line]

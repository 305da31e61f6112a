"""Gzipped JSON lines. The bytes depend on the content only, so writing a part twice changes nothing."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable
from typing import Any

from pydantic_core import to_json

from latentfarm.errors import InputError
from latentfarm.limits import PART_JOBS

#: bytes of a decompressed part. The largest that latentfarm writes has 73 MB: 1,000 rows with every field at its limit,
#: written in escapes. Without the limit, a few MB of gzip could expand to gigabytes
MAX_PART_BYTES = 80 * 1024 * 1024
#: bytes of one line; the largest that latentfarm writes has 73 kB. Without the limit, 1 MB of brackets becomes 24 MB of
#: objects
MAX_LINE_BYTES = 128 * 1024


def dump_line(fields: dict[str, Any]) -> bytes:
    """Return an object as one line of UTF-8, with its newline."""
    # a fifth of json's time; a submission spends most of its time here
    return to_json(fields) + b"\n"


def compress(lines: bytes) -> bytes:
    """Return lines, gzipped."""
    return gzip.compress(lines, compresslevel=6, mtime=0)


def pack(lines: Iterable[dict[str, Any]]) -> bytes:
    """Return objects as gzipped JSON lines."""
    return compress(b"".join(map(dump_line, lines)))


def unpack(body: bytes, *, name: str = "the part") -> list[dict[str, Any]]:
    """Return the objects of a part; ``name`` is for the error.

    Raises:
        InputError: the part is damaged or too large.
    """
    return [parse(line, name=name) for line in unpack_lines(body, name=name)]


def unpack_lines(body: bytes, *, name: str = "the part") -> list[bytes]:
    """Return the unparsed lines of a part. Memory is bounded for any body.

    Raises:
        InputError: the part is damaged or too large.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as opened:
            lines = opened.read(MAX_PART_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name} is cut or damaged ({error}); submit the batch again under another name") from None
    if len(lines) > MAX_PART_BYTES:
        raise InputError(
            f"{name} has more than {MAX_PART_BYTES:,} bytes decompressed; latentfarm writes no such part: check who "
            "can write to the bucket"
        )
    # not splitlines(): it also splits at U+2028 and others, which are legal inside a JSON string
    found = lines.split(b"\n", PART_JOBS)
    if len(found) > PART_JOBS and found[PART_JOBS]:
        raise InputError(f"{name} has more than {PART_JOBS:,} lines; latentfarm writes no such part")
    return [line for line in found if line]


def parse(line: bytes, *, name: str = "the part") -> dict[str, Any]:
    """Return the object of a line.

    Raises:
        InputError: the line is too long or not a JSON object; the text quotes nothing of it.
    """
    if len(line) > MAX_LINE_BYTES:
        raise InputError(f"{name} has a line of {len(line):,} bytes; latentfarm writes none beyond {MAX_LINE_BYTES:,}")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InputError(f"{name} has a line that is not a JSON object; submit the batch again under another name")
    return fields

"""Gzipped JSON lines whose bytes depend on their content only, so that writing a part twice changes nothing."""

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

#: bytes of a part once unpacked. A thousand rows, each field at its limit and written in escapes, have 73 MB;
#: whatever is larger was not written by us, and a few MB of gzip could stand for gigabytes
MAX_PART_BYTES = 80 * 1024 * 1024
#: bytes of one line, 73 kB at most in a part of ours; what is longer is not parsed: 1 MB of brackets is 24 of objects
MAX_LINE_BYTES = 128 * 1024


def dump_line(fields: dict[str, Any]) -> bytes:
    """Return the object as one line of UTF-8, its end included."""
    # a fifth of json's time, and a submission spends most of its own here
    return to_json(fields) + b"\n"


def compress(lines: bytes) -> bytes:
    """Return the lines gzipped."""
    return gzip.compress(lines, compresslevel=6, mtime=0)


def pack(lines: Iterable[dict[str, Any]]) -> bytes:
    """Return the objects as gzipped JSON lines."""
    return compress(b"".join(map(dump_line, lines)))


def unpack(body: bytes, *, name: str = "the part") -> list[dict[str, Any]]:
    """Return the objects of gzipped JSON lines, a part of at most a thousand; ``name`` is for the error.

    Raises:
        InputError: it is damaged, or larger than a part can be.
    """
    return [parse(line, name=name) for line in unpack_lines(body, name=name)]


def unpack_lines(body: bytes, *, name: str = "the part") -> list[bytes]:
    """Return the lines of a part as they are, to be parsed one by one; memory is bounded whatever the body claims.

    Raises:
        InputError: it is damaged, or larger than a part can be.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as opened:
            lines = opened.read(MAX_PART_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name} is cut or damaged ({error}); submit the batch again under another name") from None
    if len(lines) > MAX_PART_BYTES:
        raise InputError(
            f"{name} is more than {MAX_PART_BYTES:,} bytes long unpacked; latentfarm writes no such part: see who may "
            "write to the bucket"
        )
    # not splitlines(): U+2028 and its kin are legal inside a JSON string and no end of a line
    found = lines.split(b"\n", PART_JOBS)
    if len(found) > PART_JOBS and found[PART_JOBS]:
        raise InputError(f"{name} has more than {PART_JOBS:,} lines; latentfarm writes no such part")
    return [line for line in found if line]


def parse(line: bytes, *, name: str = "the part") -> dict[str, Any]:
    """Return the object of a line.

    Raises:
        InputError: it is too long or holds no JSON object; the text quotes nothing of it.
    """
    if len(line) > MAX_LINE_BYTES:
        raise InputError(f"{name} has a line of {len(line):,} bytes; latentfarm writes none beyond {MAX_LINE_BYTES:,}")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InputError(f"{name} has a line that is no JSON object; submit the batch again under another name")
    return fields

"""The formats, and how a source's name or its user says which one it is."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from types import MappingProxyType
from typing import BinaryIO

from latentfarm.errors import InputError
from latentfarm.prompts.jsonl import read_jsonl
from latentfarm.prompts.lines import read_blocks, ungzip
from latentfarm.prompts.parquet import read_parquet
from latentfarm.prompts.rows import Found, ReadOptions, RowCheck
from latentfarm.prompts.tables import read_table
from latentfarm.prompts.txt import read_txt

Reader = Callable[[BinaryIO, str, RowCheck], Iterator[Found]]

_READERS: MappingProxyType[str, Reader] = MappingProxyType(
    {
        "txt": read_txt,
        "jsonl": read_jsonl,
        "csv": partial(read_table, delimiter=","),
        "tsv": partial(read_table, delimiter="\t"),
        "parquet": read_parquet,
    }
)
_GZIP = ".gz"
#: every format, as ``ReadOptions.format`` takes them and as names end
FORMATS = (*_READERS, *(name + _GZIP for name in _READERS if name != "parquet"))
#: a parquet file is read from its end: one that comes as a stream must fit into memory
_PARQUET_STREAM_BYTES = 32 * 2**20


def format_of(name: str, options: ReadOptions) -> str:
    """Return the format of a source by its options, else by the end of its name.

    Raises:
        InputError: neither tells.
    """
    if options.format is not None:
        if options.format not in FORMATS:
            raise InputError(f"format {options.format!r} is not known; write one of {', '.join(FORMATS)}")
        found = options.format
    else:
        parts = name.lower().split(".")[1:]
        if parts[-2:] == ["parquet", "gz"]:
            raise InputError(f"{name}: a parquet file is compressed in itself; unpack it with gunzip")
        endings = (".".join(parts[-count:]) for count in (2, 1))
        ending = next((ending for ending in endings if ending in FORMATS), None)
        if ending is None:
            if not parts:
                raise InputError(f"{name}: its name tells no format; say it with --format ({', '.join(FORMATS)})")
            known = f"a prompt file ends in .{', .'.join(_READERS)} (all but parquet also with .gz)"
            raise InputError(f"{name}: {known}; rename it, or say its format with --format")
        found = ending
    if options.prompt_column is not None and found.removesuffix(_GZIP) == "txt":
        raise InputError(f"{name}: --prompt-column {options.prompt_column!r}: text has no columns; leave it out")
    return found


def read_stream(stream: BinaryIO, name: str, format_name: str, options: ReadOptions) -> Iterator[Found]:
    """Yield the rows of a stream in one of ``FORMATS``.

    Raises:
        InputError: it cannot be read as that.
    """
    content = stream
    if format_name.endswith(_GZIP):
        content = ungzip(stream)
    elif format_name == "parquet" and not stream.seekable():
        content = _in_memory(stream, name)
    return _READERS[format_name.removesuffix(_GZIP)](content, name, RowCheck(options))


def _in_memory(stream: BinaryIO, name: str) -> BinaryIO:
    whole = bytearray()
    for block in read_blocks(stream, name):
        whole += block
        if len(whole) > _PARQUET_STREAM_BYTES:
            raise InputError(
                f"{name}: parquet of over {_PARQUET_STREAM_BYTES:,} bytes cannot be streamed; save it to a file"
            )
    return io.BytesIO(whole)

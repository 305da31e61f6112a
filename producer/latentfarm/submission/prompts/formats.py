"""Formats of prompt files: find a source's format and read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from tempfile import SpooledTemporaryFile
from types import MappingProxyType
from typing import IO, BinaryIO, cast

from latentfarm.errors import InputError
from latentfarm.submission.prompts.columns import ReadOptions
from latentfarm.submission.prompts.json_file import read_json
from latentfarm.submission.prompts.jsonl import read_jsonl
from latentfarm.submission.prompts.lines import decompress, read_blocks
from latentfarm.submission.prompts.notes import Notes
from latentfarm.submission.prompts.parquet import read_parquet
from latentfarm.submission.prompts.rows import ParsedRow, RowCheck
from latentfarm.submission.prompts.tables import read_table
from latentfarm.submission.prompts.txt import read_txt

Reader = Callable[[BinaryIO, str, RowCheck], Iterator[ParsedRow]]

_READERS: MappingProxyType[str, Reader] = MappingProxyType(
    {
        "txt": read_txt,
        "jsonl": read_jsonl,
        "json": read_json,
        "csv": partial(read_table, delimiter=","),
        "tsv": partial(read_table, delimiter="\t"),
        "parquet": read_parquet,
    }
)
_GZIP = ".gz"
_PARQUET_MAGIC = b"PAR1"
#: values of ``ReadOptions.format``, and endings of file names
FORMATS = (*_READERS, *(name + _GZIP for name in _READERS))
#: parquet is read from its end, so a parquet stream is spooled first: in memory, beyond 32 MiB on disk
_IN_MEMORY_BYTES, _MAX_SPOOLED_BYTES = 32 * 2**20, 8 * 2**30


def format_of(name: str, options: ReadOptions) -> str:
    """Return a source's format, from the options or from its name.

    Raises:
        InputError: the format is not known, or it has no columns and the options name one.
    """
    if options.format is None:
        found = _format_of_name(name)
    elif options.format in FORMATS:
        found = options.format
    else:
        raise InputError(f"format {options.format!r} is not known; write one of {', '.join(FORMATS)}")
    if options.mapped and found.removesuffix(_GZIP) == "txt":
        [column, *_] = options.mapped.values()
        option = "--column" if options.prompt_column is None else "--prompt-column"
        raise InputError(f"{name}: {option} {column!r}: text has no columns; remove the option")
    return found


def _format_of_name(name: str) -> str:
    parts = name.lower().split(".")[1:]
    for count in (2, 1):
        ending = ".".join(parts[-count:]).replace("ndjson", "jsonl")
        if ending in FORMATS:
            return ending
    if not parts:
        raise InputError(f"{name}: the name has no ending; use --format ({', '.join(FORMATS)})")
    known = f"a prompt file ends in .{', .'.join(_READERS)} (each also with .gz)"
    raise InputError(f"{name}: {known}; rename it, or use --format")


def read_stream(
    stream: BinaryIO, name: str, format_name: str, options: ReadOptions, notes: Notes
) -> Iterator[ParsedRow]:
    """Yield the rows of a stream.

    Args:
        stream: the content, compressed if the format ends in .gz.
        name: the source's name, for messages.
        format_name: one of ``FORMATS``.
        options: how rows are read.
        notes: counts what is mapped, dropped or chosen.

    Raises:
        InputError: the stream is not in this format.
    """
    content = decompress(stream) if format_name.endswith(_GZIP) else stream
    plain = format_name.removesuffix(_GZIP)
    read, check = _READERS[plain], RowCheck(options, notes)
    if plain == "parquet" and not (content is stream and stream.seekable()):
        with SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as whole:
            _spool(content, name, whole)
            yield from read(cast("BinaryIO", whole), name, check)
    else:
        yield from read(content, name, check)


def _spool(stream: BinaryIO, name: str, whole: IO[bytes]) -> None:
    """Copy a parquet stream to a seekable file.

    Raises:
        InputError: it is not parquet, or larger than 8 GiB.
    """
    for block in read_blocks(stream, name):
        if whole.tell() == 0 and not block.startswith(_PARQUET_MAGIC):
            raise InputError(f"{name} is not a parquet file; rename it, or use --format")
        whole.write(block)
        if whole.tell() > _MAX_SPOOLED_BYTES:
            raise InputError(f"{name}: parquet over {_MAX_SPOOLED_BYTES:,} bytes cannot be streamed; save it to a file")
    whole.seek(0)

"""The formats, and how a source's name or its user says which one it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from tempfile import SpooledTemporaryFile
from types import MappingProxyType
from typing import IO, BinaryIO, cast

from latentfarm.errors import InputError
from latentfarm.submission.prompts.jsonl import read_jsonl
from latentfarm.submission.prompts.lines import read_blocks, ungzip
from latentfarm.submission.prompts.parquet import read_parquet
from latentfarm.submission.prompts.rows import ParsedRow, ReadOptions, RowCheck
from latentfarm.submission.prompts.tables import read_table
from latentfarm.submission.prompts.txt import read_txt

Reader = Callable[[BinaryIO, str, RowCheck], Iterator[ParsedRow]]

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
_PARQUET_MAGIC = b"PAR1"
#: every format, as ``ReadOptions.format`` takes them and as names end
FORMATS = (*_READERS, *(name + _GZIP for name in _READERS))
#: a parquet file is read from its end: one that comes as a stream is laid down first, in memory, a larger one on disk
_IN_MEMORY_BYTES, _LAID_DOWN_BYTES = 32 * 2**20, 8 * 2**30


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
        endings = (".".join(parts[-count:]) for count in (2, 1))
        ending = next((ending for ending in endings if ending in FORMATS), None)
        if ending is None:
            if not parts:
                raise InputError(f"{name}: its name tells no format; say it with --format ({', '.join(FORMATS)})")
            known = f"a prompt file ends in .{', .'.join(_READERS)} (each also with .gz)"
            raise InputError(f"{name}: {known}; rename it, or say its format with --format")
        found = ending
    if options.prompt_column is not None and found.removesuffix(_GZIP) == "txt":
        raise InputError(f"{name}: --prompt-column {options.prompt_column!r}: text has no columns; leave it out")
    return found


def read_stream(stream: BinaryIO, name: str, format_name: str, options: ReadOptions) -> Iterator[ParsedRow]:
    """Yield the rows of a stream in one of ``FORMATS``.

    Raises:
        InputError: it cannot be read as that.
    """
    content = ungzip(stream) if format_name.endswith(_GZIP) else stream
    plain = format_name.removesuffix(_GZIP)
    read, check = _READERS[plain], RowCheck(options)
    if plain == "parquet" and not (content is stream and stream.seekable()):
        with SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as whole:
            _lay_down(content, name, whole)
            yield from read(cast("BinaryIO", whole), name, check)
    else:
        yield from read(content, name, check)


def _lay_down(stream: BinaryIO, name: str, whole: IO[bytes]) -> None:
    """Copy the stream's content to a file that can be read from its end.

    Raises:
        InputError: it is no parquet, or too much.
    """
    for block in read_blocks(stream, name):
        if whole.tell() == 0 and not block.startswith(_PARQUET_MAGIC):
            raise InputError(f"{name} is no parquet file; name it by what it holds, or say that with --format")
        whole.write(block)
        if whole.tell() > _LAID_DOWN_BYTES:
            raise InputError(f"{name}: parquet of over {_LAID_DOWN_BYTES:,} bytes cannot be streamed; save it to disk")
    whole.seek(0)

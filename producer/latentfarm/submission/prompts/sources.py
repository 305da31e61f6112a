"""Sources of prompts: a file, standard input, an S3 object, or rows in Python."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from latentfarm.errors import InputError
from latentfarm.submission.prompts.columns import ReadOptions
from latentfarm.submission.prompts.formats import format_of, read_stream
from latentfarm.submission.prompts.notes import Notes
from latentfarm.submission.prompts.parquet import to_jsonable
from latentfarm.submission.prompts.rows import LocatedRow, ParsedRow, RowCheck, RowError, abbreviate
from latentfarm.submission.prompts.s3_object import RANGE_BYTES, S3Object, parse_url
from latentfarm.unique_names import UniqueNames

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: bytes of a stream that are kept in memory; a stream that ends within them can be read twice
AHEAD_BYTES = 32 * 2**20
_AHEAD_BLOCK_BYTES = 2**20

PromptRow = str | dict[str, Any]
SourceLike = str | Path | Iterable[PromptRow]


class Source(Protocol):
    """Rows of prompts, in order."""

    @property
    def name(self) -> str:
        """The name for messages and for the batch's default name: ``prompts.jsonl``, ``stdin``, ``rows``."""

    @property
    def digest(self) -> str | None:
        """Sha256 of the content, in hex; None if the source can be read only once."""

    @property
    def notes(self) -> Notes:
        """What was mapped, dropped or chosen in the rows that the last ``read`` has yielded."""

    def read(self) -> Iterator[ParsedRow]:
        """Yield the rows from the beginning. A source without a digest can be read once.

        Raises:
            InputError: the source cannot be read; rows before the damage have been yielded.
            UnavailableError: the store does not answer.
        """


def open_source(
    source: SourceLike,
    options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    *,
    client: S3Client | None = None,
) -> Source:
    """Return a source.

    Args:
        source: a path, ``-`` for standard input, ``s3://bucket/key``, or rows: prompts and dictionaries with
            diffusers' parameter names.
        options: how it is read.
        client: the S3 client for ``s3://`` sources.

    Raises:
        InputError: the source does not exist, or its format is not known.
    """
    if isinstance(source, str) and source == "-":
        return StreamSource("stdin", _stdin, options)
    if isinstance(source, str) and source.startswith("s3://"):
        parse_url(source)
        if client is None:
            raise InputError(f"{source}: no store is configured; set AWS_ENDPOINT_URL, or run `latentfarm up`")
        return S3Source(client, source, options)
    if isinstance(source, str | Path):
        return _open_path(Path(source), options)
    if isinstance(source, Mapping):
        raise InputError("rows: a dictionary is not a list of rows; write [{...}]")
    return RowsSource(source, options)


def _open_path(path: Path, options: ReadOptions) -> Source:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} cannot be read: it is a directory; name a file in it")
    if stat.S_ISREG(mode):
        return FileSource(path, options)
    return StreamSource(path.name, lambda: path.open("rb"), options)


def _unreadable(path: Path, error: OSError | ValueError) -> InputError:
    return InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise InputError("stdin is closed; redirect a file to it, or name a file")
    # a duplicate, so that closing it leaves stdin open
    return os.fdopen(os.dup(sys.stdin.fileno()), "rb")


class FileSource:
    """A regular file. Its digest is that of its bytes, compressed or not."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path = path
        self.name = path.name
        self._options = options
        self.notes = Notes()
        self._format = format_of(path.name, options)

    @cached_property
    def digest(self) -> str | None:
        """Sha256 of the file's bytes."""
        try:
            with self.path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(self.path, error) from None

    def read(self) -> Iterator[ParsedRow]:
        """Yield the rows from the beginning."""
        self.notes.clear()
        try:
            stream = self.path.open("rb")
        except OSError as error:
            raise _unreadable(self.path, error) from None
        with stream:
            yield from _checked(self.name, read_stream(stream, self.name, self._format, self._options, self.notes))


class StreamSource:
    """Standard input, a FIFO or a device. If it ends within 32 MiB, it can be read again like a file.

    ``start`` opens it at first use, because opening a FIFO waits for its writer.
    """

    def __init__(self, name: str, start: Callable[[], BinaryIO], options: ReadOptions) -> None:
        self.name = name
        self._start = start
        self._options = options
        self.notes = Notes()
        self._format = format_of(name, options)
        self._read = False

    @cached_property
    def _ahead(self) -> tuple[list[bytes], BinaryIO | None]:
        """The first blocks of the stream; and the stream, or None if it has ended."""
        blocks: list[bytes] = []
        try:
            with ExitStack() as cleanup:
                stream = cleanup.enter_context(self._start())
                while sum(map(len, blocks)) < AHEAD_BYTES:
                    block = stream.read(_AHEAD_BLOCK_BYTES)
                    if not block:
                        return blocks, None
                    blocks.append(block)
                cleanup.pop_all()
        except OSError as error:
            raise InputError(f"{self.name} cannot be read: {error.strerror or error}") from None
        return blocks, stream

    @cached_property
    def digest(self) -> str | None:
        """Sha256 of the bytes; None for a stream of more than 32 MiB."""
        blocks, rest = self._ahead
        if rest is not None:
            return None
        digest = hashlib.sha256()
        for block in blocks:
            digest.update(block)
        return digest.hexdigest()

    def read(self) -> Iterator[ParsedRow]:
        """Yield the rows from the beginning."""
        self.notes.clear()
        blocks, rest = self._ahead
        if rest is None:
            # a reader removes the blocks that it has read, so each gets its own list
            content = io.BufferedReader(_Chained([*blocks], io.BytesIO()))
        elif self._read:
            raise InputError(f"{self.name} can be read only once; save it to a file")
        else:
            content = io.BufferedReader(_Chained(blocks, rest))
        self._read = True
        with content:
            yield from _checked(self.name, read_stream(content, self.name, self._format, self._options, self.notes))


class S3Source:
    """An object of an S3 store. Its digest is made of its ETag and size, which need no download."""

    def __init__(self, client: S3Client, url: str, options: ReadOptions) -> None:
        self.name = url.rpartition("/")[2]
        self._client = client
        self._url = url
        self._options = options
        self.notes = Notes()
        self._format = format_of(self.name, options)

    @cached_property
    def _version(self) -> S3Object:
        return S3Object(self._client, self._url)

    @cached_property
    def digest(self) -> str | None:
        """Sha256 of ETag and size."""
        return hashlib.sha256(f"{self._version.etag}:{self._version.size_bytes}".encode()).hexdigest()

    def read(self) -> Iterator[ParsedRow]:
        """Yield the rows from the beginning."""
        self.notes.clear()
        content = io.BufferedReader(S3Object(self._client, self._url, etag=self._version.etag), RANGE_BYTES)
        with content:
            yield from _checked(self.name, read_stream(content, self.name, self._format, self._options, self.notes))


class RowsSource:
    """Rows in Python. A list or tuple can be read again, an iterator cannot."""

    name = "rows"

    def __init__(self, rows: Iterable[PromptRow], options: ReadOptions) -> None:
        self._rows = rows
        self._options = options
        self.notes = Notes()
        self._repeatable = isinstance(rows, list | tuple)
        self._read = False

    @cached_property
    def digest(self) -> str | None:
        """Sha256 of a line of JSON per row; None for an iterator."""
        if not self._repeatable:
            return None
        digest = hashlib.sha256()
        for row in self._rows:
            digest.update(_row_bytes(row) + b"\n")
        return digest.hexdigest()

    def read(self) -> Iterator[ParsedRow]:
        """Yield the rows from the beginning."""
        self.notes.clear()
        if not self._repeatable and self._read:
            raise InputError("rows can be read only once; pass a list")
        self._read = True
        check = RowCheck(self._options, self.notes)
        rows = (_check_row(f"row {number}", row, check) for number, row in enumerate(self._rows, start=1))
        yield from _checked(self.name, rows)


def _row_bytes(row: object) -> bytes:
    try:
        return json.dumps(row, default=repr).encode()
    except (TypeError, ValueError, RecursionError):
        return repr(row).encode("utf-8", "backslashreplace")


def _check_row(place: str, row: object, check: RowCheck) -> ParsedRow:
    if isinstance(row, str):
        return check.row(place, {check.prompt_column: row})
    if isinstance(row, Mapping):
        try:
            return check.row(
                place,
                {str(name): to_jsonable(v) if check.field(str(name)) is None else v for name, v in row.items()},
            )
        except RecursionError:
            return RowError(f"{place}: a value is nested too deeply; write it flatter", "nested too deeply")
    return RowError(f"{place}: {abbreviate(row)} is neither a text nor a dictionary", "not a row")


def _checked(name: str, rows: Iterable[ParsedRow]) -> Iterator[ParsedRow]:
    """Yield the rows. A row with the id of an earlier row becomes an error.

    Raises:
        InputError: there is no row.
    """
    found: ParsedRow | None = None
    with UniqueNames() as ids:
        for found in rows:
            if isinstance(found, LocatedRow) and found.row.id is not None and ids.add(found.row.id) is not None:
                text = f"{found.place}: id {abbreviate(found.row.id)} is not unique; an earlier row has it"
                yield RowError(text, "id is not unique", found.row.id)
            else:
                yield found
    if found is None:
        raise InputError(f"{name} has no prompts; write one per line")


class _Chained(io.RawIOBase):
    """Blocks of a stream, each released once it is read, and then the rest of the stream."""

    def __init__(self, blocks: list[bytes], rest: BinaryIO) -> None:
        self._blocks = blocks
        self._rest = rest
        self._at = 0
        blocks.reverse()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._rest.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        if not self._blocks:
            data = self._rest.read(len(buffer))
        else:
            data = self._blocks[-1][self._at : self._at + len(buffer)]
            self._at += len(data)
            if self._at == len(self._blocks[-1]):
                self._blocks.pop()
                self._at = 0
        buffer[: len(data)] = data
        return len(data)

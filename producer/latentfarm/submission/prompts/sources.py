"""Where prompts come from: a file, stdin, an S3 object, or Python."""

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
from latentfarm.submission.prompts.formats import format_of, read_stream
from latentfarm.submission.prompts.parquet import plain
from latentfarm.submission.prompts.rows import LocatedRow, ParsedRow, ReadOptions, RowCheck, RowError, shown
from latentfarm.submission.prompts.s3_object import S3Object, parse_url
from latentfarm.unique_names import UniqueNames

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: bytes of a stream that are read ahead; a stream that ends within them can be read twice
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
        """The sha256 of the content, in hex; None where it cannot be read twice."""

    def read(self) -> Iterator[ParsedRow]:
        """Yield the rows from the beginning; a source without a digest can be read only once.

        Raises:
            InputError: the source cannot be read, or not on; rows before that place were yielded.
            UnavailableError: the store does not answer.
        """


def open_source(
    source: SourceLike,
    options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    *,
    client: S3Client | None = None,
) -> Source:
    """Return the source that a path, ``-`` (stdin), an ``s3://`` URL or rows in Python name.

    Args:
        source: a path or URL as ``str``; rows are prompts or dictionaries in diffusers' parameter names.
        options: how it is read.
        client: the client to read ``s3://`` objects with.

    Raises:
        InputError: it is not there, or its format is not known.
    """
    if isinstance(source, str) and source == "-":
        return StreamSource("stdin", _stdin, options)
    if isinstance(source, str) and source.startswith("s3://"):
        bucket, key = parse_url(source)
        if client is None:
            raise InputError(f"{source}: no store is known; set LATENTFARM_S3_ENDPOINT_URL or run latentfarm up")
        return S3Source(S3Object(client, bucket, key), options)
    if isinstance(source, str | Path):
        return _open_path(Path(source), options)
    if isinstance(source, Mapping):
        raise InputError("rows: a single dictionary is no list of rows; write [{...}]")
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
        raise InputError("stdin is closed; give it a file, or name one")
    # a duplicate, so that closing it leaves stdin open
    return os.fdopen(os.dup(sys.stdin.fileno()), "rb")


class FileSource:
    """A regular file; its digest is that of its bytes as they lie there, compressed or not."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path = path
        self.name = path.name
        self._options = options
        self._format = format_of(path.name, options)

    @cached_property
    def digest(self) -> str | None:
        """The sha256 of the file's bytes."""
        try:
            with self.path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(self.path, error) from None

    def read(self) -> Iterator[ParsedRow]:
        """Yield the rows from the beginning."""
        try:
            stream = self.path.open("rb")
        except OSError as error:
            raise _unreadable(self.path, error) from None
        with stream:
            yield from _checked(self.name, read_stream(stream, self.name, self._format, self._options))


class StreamSource:
    """Stdin, a FIFO or a device; if it ends within 32 MiB, it is as good as a file.

    ``start`` opens it, when it is first needed: a FIFO waits there for its writer.
    """

    def __init__(self, name: str, start: Callable[[], BinaryIO], options: ReadOptions) -> None:
        self.name = name
        self._start = start
        self._options = options
        self._format = format_of(name, options)
        self._read = False

    @cached_property
    def _ahead(self) -> tuple[list[bytes], BinaryIO | None]:
        """The stream's beginning in blocks, and the stream where there is more of it."""
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
        """The sha256 of the bytes; None for a stream that goes on after 32 MiB."""
        blocks, rest = self._ahead
        if rest is not None:
            return None
        digest = hashlib.sha256()
        for block in blocks:
            digest.update(block)
        return digest.hexdigest()

    def read(self) -> Iterator[ParsedRow]:
        """Yield the rows from the beginning."""
        blocks, rest = self._ahead
        if rest is None:
            # every reader needs blocks of its own: they are given up as they are used
            content = io.BufferedReader(_Chained([*blocks], io.BytesIO()))
        elif self._read:
            raise InputError(f"{self.name} can be read only once; save it to a file")
        else:
            content = io.BufferedReader(_Chained(blocks, rest))
        self._read = True
        with content:
            yield from _checked(self.name, read_stream(content, self.name, self._format, self._options))


class S3Source:
    """An object in an S3 store; its digest is made of its ETag and size, so that it is not read for it."""

    def __init__(self, found: S3Object, options: ReadOptions) -> None:
        self.name = found.key.rpartition("/")[2]
        self._object = found
        self._options = options
        self._format = format_of(self.name, options)

    @cached_property
    def digest(self) -> str | None:
        """The sha256 of ETag and size."""
        return hashlib.sha256(f"{self._object.etag}:{self._object.size_bytes}".encode()).hexdigest()

    def read(self) -> Iterator[ParsedRow]:
        """Yield the rows from the beginning."""
        yield from _checked(self.name, read_stream(self._object.open(), self.name, self._format, self._options))


class RowsSource:
    """Rows given in Python; a list or tuple can be read again, an iterator cannot."""

    name = "rows"

    def __init__(self, rows: Iterable[PromptRow], options: ReadOptions) -> None:
        self._rows = rows
        self._options = options
        self._repeatable = isinstance(rows, list | tuple)
        self._read = False

    @cached_property
    def digest(self) -> str | None:
        """The sha256 over a line of JSON a row; None for an iterator."""
        if not self._repeatable:
            return None
        digest = hashlib.sha256()
        for row in self._rows:
            digest.update(_row_bytes(row) + b"\n")
        return digest.hexdigest()

    def read(self) -> Iterator[ParsedRow]:
        """Yield the rows from the beginning."""
        if not self._repeatable and self._read:
            raise InputError("rows can be read only once; give a list")
        self._read = True
        check = RowCheck(self._options)
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
            return check.row(place, {name: plain(v) if check.field(name) is None else v for name, v in row.items()})
        except RecursionError:
            return RowError(f"{place}: a value is nested too deeply; write it flatter", "nested too deeply")
    return RowError(f"{place}: {shown(row)} is neither a text nor a dictionary; write one of them", "not a row")


def _checked(name: str, rows: Iterable[ParsedRow]) -> Iterator[ParsedRow]:
    """Yield the rows. A row with the id of an earlier row becomes an error.

    Raises:
        InputError: there is no row.
    """
    found: ParsedRow | None = None
    with UniqueNames() as ids:
        for found in rows:
            if isinstance(found, LocatedRow) and found.row.id is not None and ids.add(found.row.id) is not None:
                text = f"{found.place}: id {shown(found.row.id)} is not unique; an earlier row has it"
                yield RowError(text, "id is not unique")
            else:
                yield found
    if found is None:
        raise InputError(f"{name} has no prompts; write one per line")


class _Chained(io.RawIOBase):
    """Blocks, each given up once it is read, and then the rest of the stream that they came from."""

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

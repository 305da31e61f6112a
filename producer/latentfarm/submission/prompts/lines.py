"""Split a stream of bytes into lines of bounded length.

The input is not trusted. A line of a gigabyte, a gzip bomb of zeros or of newlines, and text in another encoding are
refused within the first megabytes.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from latentfarm.errors import InputError
from latentfarm.submission.prompts.rows import ParsedRow, RowError

#: bytes of the longest line, and of the longest record of a table
MAX_LINE_BYTES = 2**20
#: bytes of consecutive blank lines and comments
MAX_SKIPPED_BYTES = 2 * 2**20
_BLOCK_BYTES = 2**18

_UTF8_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
#: which of the first four bytes are not NUL, if ASCII text is encoded as UTF-16 without a byte-order mark
_UTF16_STARTS = (b"\0\1\0\1", b"\1\0\1\0")
_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"


def decompress(stream: BinaryIO) -> BinaryIO:
    """Return the content of a gzip stream. ``read_blocks`` reports damage."""
    unpacked: BinaryIO = gzip.GzipFile(fileobj=stream, mode="rb")  # type: ignore[assignment]
    return unpacked


def read_blocks(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield a stream's content in blocks of 256 KiB.

    Raises:
        InputError: reading fails, or a compressed stream is truncated or damaged.
    """
    try:
        while block := stream.read(_BLOCK_BYTES):
            yield block
    except gzip.BadGzipFile as error:
        raise InputError(f"{name} is not a gzip file or is damaged ({error}); compress it again") from None
    except (EOFError, zlib.error) as error:
        raise InputError(f"{name} is truncated or damaged ({error}); compress or copy it again") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from None


def read_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, list[bytes]]]:
    """Yield, for each block, the number of lines before it and its lines without newlines.

    Raises:
        InputError: a line is longer than 1 MiB, or the first bytes are not those of UTF-8 text.
    """
    before, tail, first = 0, b"", True
    for content in read_blocks(stream, name):
        block = content
        if first:
            first = False
            block = _checked_start(block, name)
        lines = (tail + block).split(b"\n")
        tail = lines.pop()
        # only the first line and the tail can be longer than a block
        if lines and len(lines[0]) > MAX_LINE_BYTES:
            raise line_too_long_error(f"{name} line {before + 1}")
        if len(tail) > MAX_LINE_BYTES:
            raise line_too_long_error(f"{name} line {before + len(lines) + 1}")
        if lines:
            yield before, lines
            before += len(lines)
    if tail:
        yield before, [tail]


def line_too_long_error(place: str, hint: str = "is each row on a line of its own?") -> InputError:
    """Return the error for a line, or a record of a table, over the limit."""
    return InputError(f"{place} is longer than {MAX_LINE_BYTES:,} bytes; {hint}")


def rows_of_lines(
    stream: BinaryIO, name: str, parse: Callable[[int, list[bytes]], Iterator[ParsedRow]]
) -> Iterator[ParsedRow]:
    """Yield the rows of all lines. ``parse`` gets the number of lines before a block, and the block's lines.

    Raises:
        InputError: see ``read_lines``; or 2 MiB of lines in a row have no row.
    """
    skipped = 0
    for before, lines in read_lines(stream, name):
        nothing = True
        for found in parse(before, lines):
            nothing = False
            yield found
        skipped = skipped + sum(map(len, lines)) + len(lines) if nothing else 0
        if skipped > MAX_SKIPPED_BYTES:
            raise no_rows_error(f"{name} line {before + len(lines)}")


def no_rows_error(place: str) -> InputError:
    """Return the error for too many blank lines and comments in a row."""
    return InputError(
        f"{place}: the {MAX_SKIPPED_BYTES:,} bytes before it have no row; remove blank lines and comments"
    )


def not_utf8_error(place: str, error: UnicodeDecodeError) -> RowError:
    """Return the error for a line with a byte that is not UTF-8."""
    byte = error.object[error.start]
    return RowError(
        f"{place}: byte {error.start + 1} is 0x{byte:02x}, which is not UTF-8; save the file as UTF-8", "not UTF-8"
    )


def _checked_start(block: bytes, name: str) -> bytes:
    if block.startswith(_UTF8_BOM):
        return block[len(_UTF8_BOM) :]
    for mark, encoding in _OTHER_BOMS:
        if block.startswith(mark):
            raise InputError(f"{name} is {encoding}; save it as UTF-8")
    if bytes(map(bool, block[:4])) in _UTF16_STARTS:
        raise InputError(f"{name} looks like UTF-16; save it as UTF-8")
    if block.startswith(_GZIP_MAGIC):
        raise InputError(f"{name} is compressed with gzip; end its name in .gz, or use --format, such as jsonl.gz")
    if block.startswith(_PARQUET_MAGIC):
        raise InputError(f"{name} is a parquet file; end its name in .parquet, or use --format parquet")
    return block

"""A stream of bytes, as lines of bounded length.

Nothing here trusts its input: a line of a gigabyte, a gzip file that expands to terabytes of zeros or of newlines, and
text in another encoding are each refused after a megabyte or so, by name.
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
#: bytes of blank lines and comments in a row
MAX_SKIPPED_BYTES = 2 * 2**20
_BLOCK_BYTES = 2**18

_UTF8_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
#: where the first four bytes of text in UTF-16 are not NUL, if they have no mark and are ASCII
_UTF16_STARTS = (b"\0\1\0\1", b"\1\0\1\0")
_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"


def ungzip(stream: BinaryIO) -> BinaryIO:
    """Return the stream's content; ``read_blocks`` tells what is wrong with it."""
    unpacked: BinaryIO = gzip.GzipFile(fileobj=stream, mode="rb")  # type: ignore[assignment]
    return unpacked


def read_blocks(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield a stream's content in blocks of 256 KiB.

    Raises:
        InputError: it cannot be read to its end, or is cut or damaged where it is compressed.
    """
    try:
        while block := stream.read(_BLOCK_BYTES):
            yield block
    except gzip.BadGzipFile as error:
        raise InputError(f"{name} is no gzip file or is damaged ({error}); compress it again") from None
    except (EOFError, zlib.error) as error:
        raise InputError(f"{name} is cut or damaged ({error}); compress or copy it again") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from None


def read_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (lines before these, lines without their newline), a block at a time.

    Raises:
        InputError: a line is longer than 1 MiB, or the content is no UTF-8 text by its first bytes.
    """
    before, tail, first = 0, b"", True
    for content in read_blocks(stream, name):
        block = content
        if first:
            first = False
            block = _checked_start(block, name)
        lines = (tail + block).split(b"\n")
        tail = lines.pop()
        # only the first can be longer than a block
        if len(tail) > MAX_LINE_BYTES or (lines and len(lines[0]) > MAX_LINE_BYTES):
            raise InputError(
                too_long(f"{name} line {before + len(lines) + 1 if len(tail) > MAX_LINE_BYTES else before + 1}")
            )
        if lines:
            yield before, lines
            before += len(lines)
    if tail:
        yield before, [tail]


def too_long(place: str) -> str:
    """Say that a line is over the limit."""
    return f"{place} is longer than {MAX_LINE_BYTES:,} bytes; is every row on a line of its own?"


def rows_of_lines(
    stream: BinaryIO, name: str, parse: Callable[[int, list[bytes]], Iterator[ParsedRow]]
) -> Iterator[ParsedRow]:
    """Yield what ``parse`` makes of every block of lines.

    Raises:
        InputError: as ``read_lines``; or megabytes of lines hold nothing.
    """
    skipped = 0
    for before, lines in read_lines(stream, name):
        nothing = True
        for found in parse(before, lines):
            nothing = False
            yield found
        skipped = skipped + sum(map(len, lines)) + len(lines) if nothing else 0
        if skipped > MAX_SKIPPED_BYTES:
            raise InputError(nothing_there(f"{name} line {before + len(lines)}"))


def nothing_there(place: str) -> str:
    """Say that the blank lines do not end."""
    return f"{place}: the {MAX_SKIPPED_BYTES:,} bytes before it hold no row; take out the blank lines and comments"


def no_utf8(place: str, error: UnicodeDecodeError) -> RowError:
    """Say which byte of a line is no UTF-8."""
    byte = error.object[error.start]
    return RowError(
        f"{place}: byte {error.start + 1} is 0x{byte:02x}, which is no UTF-8; save the file as UTF-8", "not UTF-8"
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
        raise InputError(f"{name} is compressed with gzip; end its name in .gz, or its format (such as jsonl.gz)")
    if block.startswith(_PARQUET_MAGIC):
        raise InputError(f"{name} is a parquet file; end its name in .parquet, or say the format parquet")
    return block

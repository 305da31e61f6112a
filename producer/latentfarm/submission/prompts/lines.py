"""Split a stream of bytes into lines of bounded length.

The input is not trusted. A line of a gigabyte, a gzip bomb of zeros or of newlines, and text in another encoding are
refused within the first megabytes.

A line ends with LF or CRLF. In a file of an old Mac, which has no LF, it ends with CR.
"""

from __future__ import annotations

import gzip
import re
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
#: what some programs end a line with, but not this one; by the name for messages
_STRAY_ENDS = {
    "\r": "a lone CR",
    "\n": "an LF among lone CRs",
    "\v": "a vertical tab",
    "\f": "a form feed",
    "\x85": "NEL",
    "\u2028": "U+2028",
    "\u2029": "U+2029",
}
_LONE_CR = re.compile(rb"\r++(?!\n)")
_STRAY_END = re.compile(f"[{''.join(_STRAY_ENDS)}]")
_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = b"PK\x03\x04"
_PARQUET_MAGIC = b"PAR1"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(rb"\s*<(?:!doctype html|html[\s>])", re.IGNORECASE)


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


class Lines:
    """The lines of a stream: for each block, the number of lines before it and its lines without their ends.

    Attributes:
        end: what ends a line, once the first block is read: LF, which may follow a CR, or a lone CR.
    """

    def __init__(self, stream: BinaryIO, name: str, *, quoted: bool = False) -> None:
        """Take a stream, its name for messages, and whether lines after the first may have line ends in quotes."""
        self._blocks = read_blocks(stream, name)
        self._name = name
        self._quoted = quoted
        self.end = b"\n"

    def __iter__(self) -> Iterator[tuple[int, list[bytes]]]:
        """Yield the lines of each block.

        Raises:
            InputError: a line is longer than 1 MiB, or the first bytes are not those of UTF-8 text.
        """
        before, tail = 0, b""
        for number, content in enumerate(self._blocks):
            block = content
            if number == 0:
                block = checked_start(block, self._name)
                self.end = _line_end(block, quoted=self._quoted)
            lines = (tail + block).split(self.end)
            tail = lines.pop()
            # only the first line and the tail can be longer than a block
            if lines and len(lines[0]) > MAX_LINE_BYTES:
                raise line_too_long_error(f"{self._name} line {before + 1}")
            if len(tail) > MAX_LINE_BYTES:
                raise line_too_long_error(f"{self._name} line {before + len(lines) + 1}")
            if lines:
                yield before, lines
                before += len(lines)
        if tail:
            yield before, [tail]


def _line_end(block: bytes, *, quoted: bool) -> bytes:
    """Return what ends the lines of a stream that starts with this block."""
    cr = _LONE_CR.search(block)
    # the LF of a block's last CR may be in the next block
    if cr is None or (cr.end() == len(block) >= _BLOCK_BYTES):
        return b"\n"
    lf = block.find(b"\n")
    # a CR of an old Mac's table ends its header; an LF is then a line end inside a cell
    return b"\r" if lf == -1 or (quoted and cr.start() < lf) else b"\n"


def stray_line_end(line: str) -> str | None:
    """Return what is wrong with a line that another program would read as two lines, or None.

    A line end at either side of the line is none inside it.
    """
    found = _STRAY_END.search(line.strip())
    if found is None:
        return None
    what = f"{_STRAY_ENDS[found[0]]} (character {found.start() + 1}) ends a line in some programs"
    return f"{what}; end lines with LF or CRLF, or write a space"


def line_too_long_error(place: str, hint: str = "is each row on a line of its own?") -> InputError:
    """Return the error for a line, or a record of a table, over the limit."""
    return InputError(f"{place} is longer than {MAX_LINE_BYTES:,} bytes; {hint}")


def rows_of_lines(
    stream: BinaryIO, name: str, parse: Callable[[int, list[bytes]], Iterator[ParsedRow]]
) -> Iterator[ParsedRow]:
    """Yield the rows of all lines. ``parse`` gets the number of lines before a block, and the block's lines.

    Raises:
        InputError: see ``Lines``; or 2 MiB of lines in a row have no row.
    """
    skipped = 0
    for before, lines in Lines(stream, name):
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
    byte = error.object[error.start : error.start + 1]
    try:
        guess = f" (in Windows-1252 it is {byte.decode('cp1252')!r})"
    except UnicodeDecodeError:
        guess = ""
    what = f"byte {error.start + 1} is 0x{byte.hex()}, which is not UTF-8{guess}"
    return RowError(f"{place}: {what}; save the file as UTF-8", "not UTF-8")


def checked_start(block: bytes, name: str) -> bytes:
    """Return the first block of a text without its byte-order mark.

    Raises:
        InputError: it is not the start of UTF-8 text.
    """
    if block.startswith(_UTF8_BOM):
        return block[len(_UTF8_BOM) :]
    for mark, encoding in _OTHER_BOMS:
        if block.startswith(mark):
            raise InputError(f"{name} is {encoding}; save it as UTF-8, such as with iconv -f {encoding} -t UTF-8")
    if bytes(map(bool, block[:4])) in _UTF16_STARTS:
        raise InputError(f"{name} looks like UTF-16; save it as UTF-8")
    if block.startswith(_GZIP_MAGIC):
        raise InputError(f"{name} is compressed with gzip; end its name in .gz, or use --format, such as jsonl.gz")
    if block.startswith(_ZIP_MAGIC):
        raise InputError(f"{name} is a zip archive, or a workbook such as .xlsx; unpack it, or save it as CSV")
    if block.startswith(_LFS_POINTER):
        raise InputError(f"{name} is a pointer of Git LFS, not the file; run git lfs pull, or download the file")
    if _HTML.match(block):
        raise InputError(f"{name} is an HTML page; download the file itself, such as by its link 'raw'")
    if block.startswith(_PARQUET_MAGIC):
        raise InputError(f"{name} is a parquet file; end its name in .parquet, or use --format parquet")
    return block

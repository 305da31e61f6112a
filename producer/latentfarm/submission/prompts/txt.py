"""Text files with a prompt on each line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import BinaryIO

from pydantic import ValidationError

from latentfarm.job import Row
from latentfarm.submission.prompts import flags
from latentfarm.submission.prompts.lines import not_utf8_error, rows_of_lines, stray_line_end
from latentfarm.submission.prompts.rows import STYLE_MARK, LocatedRow, ParsedRow, RowCheck, RowError, abbreviate

#: the second and third lines of the text that AUTOMATIC1111 writes into an image
_INFOTEXT = re.compile(r"(?i:negative prompt): |Steps: \d+, Sampler: ")
_validate = Row.__pydantic_validator__.validate_python


def read_txt(stream: BinaryIO, name: str, check: RowCheck) -> Iterator[ParsedRow]:
    """Yield the prompts of a text file. Blank lines and lines that begin with ``#`` are skipped.

    A line may have flags; see ``latentfarm.submission.prompts.flags``.

    Raises:
        InputError: the stream is not text.
    """
    return rows_of_lines(stream, name, partial(_parse, f"{name} line ", check))


def _parse(prefix: str, check: RowCheck, number: int, lines: list[bytes]) -> Iterator[ParsedRow]:
    for raw in lines:
        number += 1
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError as error:
            yield not_utf8_error(f"{prefix}{number}", error)
            continue
        # printable text has none of the characters that end a line
        if not line.isprintable() and (stray := stray_line_end(line)):
            yield RowError(f"{prefix}{number}: {stray}", "line ends")
            continue
        if not line or line[0] == "#":
            continue
        if _INFOTEXT.match(line):
            yield RowError(
                f"{prefix}{number}: {abbreviate(line)} is a line of AUTOMATIC1111's image parameters, not a prompt; "
                "write flags after the prompt, such as --steps 20, or save the prompts alone",
                "image parameters",
            )
            continue
        if "-" in line and flags.has_flags(line):
            yield flags.check_line(f"{prefix}{number}", check, line)
            continue
        row = None
        if STYLE_MARK not in line:
            with suppress(ValidationError):
                row = _validate({"prompt": line})
        place = f"{prefix}{number}"
        yield check.row(place, {"prompt": line}) if row is None else LocatedRow(place, row)

"""Indices of jobs on the command line: ``3,17-40``."""

from __future__ import annotations

import re

from latentfarm.errors import InputError

_RANGE = re.compile(r"(\d{1,15})(?:-(\d{1,15}))?", re.ASCII)


def parse_indices(option: str, text: str, *, most: int) -> list[int]:
    """Return the rising indices of a list of indices and ranges, whose ends are included.

    Args:
        option: the option or argument that has it, for the error.
        text: the list.
        most: indices that are accepted.

    Raises:
        InputError: it has another form, or too many indices.
    """
    found: set[int] = set()
    for part in text.split(","):
        matched = _RANGE.fullmatch(part.strip())
        first, last = (int(matched[1]), int(matched[2] or matched[1])) if matched else (0, -1)
        if last < first:
            raise InputError(f"{option} {part.strip()!r}: write indices and rising ranges, such as 3,17-40")
        if last - first >= most:
            raise InputError(f"{option} {part.strip()}: {last - first + 1:,} jobs; write at most {most:,}")
        found.update(range(first, last + 1))
        if len(found) > most:
            raise InputError(f"{option} {text[:80]}: more than {most:,} jobs; write fewer")
    return sorted(found)

"""The options that select drafts of a batch."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from latentfarm.batch_drafts import DraftSelection
from latentfarm.cli.amounts import parse_amount
from latentfarm.cli.index_ranges import parse_indices
from latentfarm.errors import InputError
from latentfarm.names import parse_job_name
from latentfarm.storage.pick_state import Pick
from latentfarm.storage.picks import MAX_DECIDED

Indices = Annotated[str | None, typer.Option("--indices", metavar="INDICES", help="Jobs of the batch, such as 3,17-40")]
FromFile = Annotated[
    str | None, typer.Option("--from", metavar="FILE", help="Jobs in FILE, `-` for stdin: names or indices")
]
Picked = Annotated[bool, typer.Option("--picked", help="Only drafts that are picked")]
Rejected = Annotated[bool, typer.Option("--rejected", help="Only drafts that are rejected")]
Top = Annotated[
    str | None, typer.Option("--top", metavar="N|P%", help="Only the best N, or P percent, of them; needs --by")
]
By = Annotated[
    str,
    typer.Option(
        "--by", metavar="COLUMN", help="Number that makes a draft better: a scorer, rating, columns.NAME or scores.NAME"
    ),
]
Distinct = Annotated[
    int | None,
    typer.Option(
        "--distinct",
        metavar="BITS",
        help="Leave out drafts whose scores.phash is within so many bits of a better one's",
    ),
]


def parse_selection(
    batch: str,
    *,
    indices: str | None = None,
    file: str | None = None,
    picked: bool = False,
    rejected: bool = False,
    top: str | None = None,
    by: str = "",
    distinct: int | None = None,
) -> DraftSelection:
    """Return the selection of the options of a command.

    Raises:
        InputError: an option is invalid, or two exclude each other.
    """
    if indices is not None and file is not None:
        raise InputError("--indices and --from do not go together; write the indices into the file")
    if picked and rejected:
        raise InputError("--picked and --rejected do not go together; no draft is both")
    found = DraftSelection(
        pick=Pick.PICKED if picked else Pick.REJECTED if rejected else None,
        top=0 if top is None else parse_amount("--top", top),
        by=by,
        distinct=distinct,
    )
    if indices is not None:
        found = replace(found, indices=tuple(parse_indices("--indices", indices, most=MAX_DECIDED)))
    return found if file is None else replace(found, indices=_read_jobs(batch, file))


def format_indices(indices: tuple[int, ...] | list[int]) -> str:
    """Return rising indices as ``parse_indices`` reads them, such as ``3,17-40``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _read_jobs(batch: str, file: str) -> tuple[int, ...]:
    """Return the jobs in a file: in each line one, or several indices between commas and in ranges.

    Raises:
        InputError: it cannot be read, or a line has another form; the text names it.
    """
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InputError(f"--from {file!r} cannot be read: {reason}; name a file with a job in each line") from None
    found: set[int] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.strip()
        if "/" in words:
            name, index = parse_job_name(words)
            if name != batch:
                raise InputError(f"{file}:{number}: job {words} is of another batch than {batch}; leave it out")
            found.add(index)
        elif words:
            found.update(parse_indices(f"{file}:{number}:", words, most=MAX_DECIDED))
    return tuple(sorted(found))

"""Reading prompts: txt, jsonl, csv, tsv and parquet, from files, stdin, ``s3://`` objects or Python.

A wrong row is never skipped and never guessed at: it becomes a ``Problem`` with place, field, value and cure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from latentfarm.prompts.client_ids import ClientIds
from latentfarm.prompts.formats import FORMATS
from latentfarm.prompts.rows import (
    FIELDS,
    SHOWN_PROBLEMS,
    Found,
    PlacedRow,
    Problem,
    ReadOptions,
    check_all,
    check_defaults,
)
from latentfarm.prompts.sources import Source, SourceLike, open_source

__all__ = [
    "FIELDS",
    "FORMATS",
    "SHOWN_PROBLEMS",
    "ClientIds",
    "Found",
    "PlacedRow",
    "Problem",
    "ReadOptions",
    "Source",
    "SourceLike",
    "check_all",
    "check_defaults",
    "open_source",
    "read_file",
    "read_rows",
]


def read_file(path: Path) -> Iterator[Found]:
    """Yield the rows of a prompt file in order, one at a time.

    Raises:
        InputError: the file cannot be read or is of no known kind.
    """
    return open_source(path).read()


def read_rows(rows: Iterable[str | dict[str, Any]]) -> Iterator[Found]:
    """Yield rows given in Python: a prompt, or a dictionary in diffusers' parameter names."""
    return open_source(rows).read()

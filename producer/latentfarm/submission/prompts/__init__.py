"""Read prompts: txt, jsonl, csv, tsv and parquet, from files, standard input, ``s3://`` objects or Python.

An invalid row is neither skipped nor repaired: it becomes a ``RowError`` with place, field, value and cure.
"""

from __future__ import annotations

from latentfarm.submission.prompts.formats import FORMATS
from latentfarm.submission.prompts.rows import LocatedRow, ReadOptions, RowError, check_defaults
from latentfarm.submission.prompts.sources import Source, SourceLike, open_source

__all__ = [
    "FORMATS",
    "LocatedRow",
    "ReadOptions",
    "RowError",
    "Source",
    "SourceLike",
    "check_defaults",
    "open_source",
]

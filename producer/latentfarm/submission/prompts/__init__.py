"""Reading prompts: txt, jsonl, csv, tsv and parquet, from files, stdin, ``s3://`` objects or Python.

A wrong row is never skipped and never guessed at: it becomes a ``Problem`` with place, field, value and cure.
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

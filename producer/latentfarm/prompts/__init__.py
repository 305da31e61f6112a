"""Reading prompts: txt, jsonl, csv, tsv and parquet, from files, stdin, ``s3://`` objects or Python.

A wrong row is never skipped and never guessed at: it becomes a ``Problem`` with place, field, value and cure.
"""

from __future__ import annotations

from latentfarm.prompts.client_ids import ClientIds
from latentfarm.prompts.formats import FORMATS
from latentfarm.prompts.rows import PlacedRow, Problem, ReadOptions, check_defaults
from latentfarm.prompts.sources import Source, SourceLike, open_source

__all__ = [
    "FORMATS",
    "ClientIds",
    "PlacedRow",
    "Problem",
    "ReadOptions",
    "Source",
    "SourceLike",
    "check_defaults",
    "open_source",
]

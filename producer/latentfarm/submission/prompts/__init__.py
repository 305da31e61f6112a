"""Read prompts: txt, jsonl, json, csv, tsv and parquet, from files, standard input, ``s3://`` objects or Python.

One pipeline: a source is decoded into rows (``formats``), the names of each row are mapped (``columns``, ``aliases``),
and its values are validated (``rows``); its prompts are expanded later. An invalid row is neither skipped nor repaired:
it becomes a ``RowError`` with place, field, value and cure. What was mapped or chosen is counted in ``Notes``.
"""

from __future__ import annotations

from latentfarm.submission.prompts.columns import ReadOptions
from latentfarm.submission.prompts.formats import FORMATS
from latentfarm.submission.prompts.notes import Notes
from latentfarm.submission.prompts.rows import LocatedRow, RowError, check_defaults
from latentfarm.submission.prompts.sources import Source, SourceLike, open_source

__all__ = [
    "FORMATS",
    "LocatedRow",
    "Notes",
    "ReadOptions",
    "RowError",
    "Source",
    "SourceLike",
    "check_defaults",
    "open_source",
]

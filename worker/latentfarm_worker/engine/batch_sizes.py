"""The numbers of rows that the model may be called with, so that a picture's bytes do not depend on its neighbours.

A row's numbers depend on how many rows are computed with it: libraries take other kernels for other sizes, which add
up in another order. But not for all: from some count on, or at multiples of one, a CPU's kernels do each row alike.
Which counts give the very bytes of the full batch is therefore tried, once for a device, a model and a shape. The
engine pads to the next of them instead of to the full batch. Another order of adding shows: of the thousands of
numbers that a model puts out, each the end of many sums, hardly one would keep its last bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from latentfarm_worker.calibration.cache import CalibrationCache, cache_key
from latentfarm_worker.calibration.dummy_inputs import dummy_inputs
from latentfarm_worker.models.base import Family, LatentShape

log = logging.getLogger(__name__)

FILE = "rows.json"
#: counts that are tried: these parts of the full batch
_PARTS = 8


class BatchSizes(Protocol):
    """Says with how many rows a model may be called, in rising order; the last is ``rows``, the full batch.

    ``on_call`` is called before each call of the model that this takes.
    """

    def __call__(
        self, family: Family, shape: LatentShape, rows: int, *, on_call: Callable[[], None]
    ) -> tuple[int, ...]:
        """Return the counts."""


def exact_batch_sizes(family: Family, shape: LatentShape, rows: int, *, on_call: Callable[[], None]) -> tuple[int, ...]:
    """Try which counts give each row the very bytes that it has in the full batch; see ``RowCounts``."""
    inputs = dummy_inputs(family, shape, rows)
    on_call()
    whole = family.predict(*inputs)

    def is_exact(count: int) -> bool:
        on_call()
        return torch.equal(family.predict(*inputs.first(count)), whole[:count])

    part = max(1, rows // _PARTS)
    tried = {*range(part, rows, part), *compiled_batch_sizes(rows)} - {rows}
    return (*filter(is_exact, sorted(tried)), rows)


def any_batch_size(family: Family, shape: LatentShape, rows: int, *, on_call: Callable[[], None]) -> tuple[int, ...]:
    """Return every count; see ``RowCounts``."""
    del family, shape, on_call
    return tuple(range(1, rows + 1))


def compiled_batch_sizes(rows: int) -> list[int]:
    """Return the counts that a model is compiled for: the full batch, and a quarter for the last of a run."""
    return sorted({max(1, rows // 4), rows})


class CachedBatchSizes(BatchSizes):
    """Exact counts as they were found before on this machine, or as they are found now."""

    def __init__(self, cache: Path) -> None:
        self._found = CalibrationCache(cache, FILE, tuple[int, ...])

    def __call__(
        self, family: Family, shape: LatentShape, rows: int, *, on_call: Callable[[], None]
    ) -> tuple[int, ...]:
        """Return the counts."""
        key = cache_key(family, f"{rows} rows of {shape.width}x{shape.height}x{shape.chunks}", *_compiled(family))
        counts, _ = self._found.find(key, lambda: exact_batch_sizes(family, shape, rows, on_call=on_call))
        log.info("latents of %s: a row is the same to the last bit among %s rows", shape, ", ".join(map(str, counts)))
        return counts


def _compiled(family: Family) -> tuple[str, ...]:
    return ("compiled",) if family.compiled else ()

"""Batch sizes that the model may be called with, so that an image's bytes do not depend on other images.

A row's numbers depend on the batch size: libraries select other kernels for other sizes, which add in another order.
But not for all sizes. From some size on, or at multiples of one, a CPU's kernels compute every row alike. The sizes
with exactly the bytes of the full batch are found by trying, once for a device, a model and a shape. The engine pads to
the next of these sizes instead of to the full batch. A trial is enough, since another order of adding is visible: of a
model's thousands of output numbers, each the end of many sums, hardly any would keep its last bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from latentfarm_worker import device_errors
from latentfarm_worker.calibration.cache import CalibrationCache, cache_key
from latentfarm_worker.calibration.dummy_inputs import call_with_each_size, dummy_inputs
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models.base import Family

log = logging.getLogger(__name__)

FILE = "batch_sizes.json"
#: sizes that are tried: multiples of this part of the full batch
_PARTS = 8


class BatchSizes(Protocol):
    """Returns the batch sizes that a model may be called with."""

    def __call__(
        self, family: Family, shape: LatentShape, rows: int, *, on_forward: Callable[[], None]
    ) -> tuple[int, ...]:
        """Return the sizes in rising order; the last is ``rows``, the full batch.

        ``on_forward`` is called before each forward pass that this takes.
        """


def exact_batch_sizes(
    family: Family, shape: LatentShape, rows: int, *, on_forward: Callable[[], None]
) -> tuple[int, ...]:
    """Try which sizes give each row exactly the bytes that it has in the full batch; see ``BatchSizes``."""
    inputs = dummy_inputs(family, shape, rows)
    on_forward()
    whole = family.predict(*inputs)

    def is_exact(size: int) -> bool:
        on_forward()
        return torch.equal(family.predict(*inputs.first(size)), whole[:size])

    part = max(1, rows // _PARTS)
    tried = {*range(part, rows, part), *compiled_batch_sizes(rows)} - {rows}
    return (*filter(is_exact, sorted(tried)), rows)


def any_batch_size(family: Family, shape: LatentShape, rows: int, *, on_forward: Callable[[], None]) -> tuple[int, ...]:
    """Return every size up to ``rows``; see ``BatchSizes``."""
    del family, shape, on_forward
    return tuple(range(1, rows + 1))


def compiled_batch_sizes(rows: int) -> list[int]:
    """Return the sizes that a model is compiled for: the full batch, and a quarter for the last images of a run."""
    return sorted({max(1, rows // 4), rows})


class KnownBatchSizes:
    """The batch sizes of an engine's shapes, each found when the shape first begins."""

    def __init__(self, family: Family, find: BatchSizes, *, on_forward: Callable[[], None]) -> None:
        self._family = family
        self._find = find
        self._on_forward = on_forward
        #: by shape and rows of a full batch
        self._known: dict[tuple[LatentShape, int], tuple[int, ...]] = {}

    @property
    def exact(self) -> bool:
        """Whether an image's bytes are independent of the other images in the batch."""
        return self._find is not any_batch_size

    def of(self, shape: LatentShape, rows: int) -> tuple[int, ...]:
        """Return the batch sizes that the model may be called with; the last is the full batch."""
        if (shape, rows) not in self._known:
            try:
                sizes = self._find(self._family, shape, rows, on_forward=self._on_forward)
            except Exception as error:
                if device_errors.is_fatal(error):
                    raise
                # the full batch is exact by definition; if it does not fit or breaks, the next step shows it
                log.warning("latents of %s: only the full batch of %d rows is used", shape, rows, exc_info=error)
                return (rows,)
            self._known[shape, rows] = sizes
        return self._known[shape, rows]

    def call_each(self, shape: LatentShape, rows: int) -> None:
        """Call the model with each of its batch sizes."""
        call_with_each_size(self._family, shape, self.of(shape, rows), on_forward=self._on_forward)


class CachedBatchSizes(BatchSizes):
    """Exact batch sizes, cached below a folder of this machine."""

    def __init__(self, cache: Path) -> None:
        self._found = CalibrationCache(cache, FILE, tuple[int, ...])

    def __call__(
        self, family: Family, shape: LatentShape, rows: int, *, on_forward: Callable[[], None]
    ) -> tuple[int, ...]:
        key = cache_key(family, f"{rows} rows of {shape.width}x{shape.height}x{shape.chunks}", *_compiled(family))
        sizes, _ = self._found.find(key, lambda: exact_batch_sizes(family, shape, rows, on_forward=on_forward))
        log.info("latents of %s: exact batch sizes are %s rows", shape, ", ".join(map(str, sizes)))
        return sizes


def _compiled(family: Family) -> tuple[str, ...]:
    return ("compiled",) if family.compiled else ()

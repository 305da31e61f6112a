"""The worker's engine without a farm: fed in process, with nothing encoded or stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tests.bench.workload import Row

from latentfarm.job import Job
from latentfarm.settings import Settings
from latentfarm_worker import build
from latentfarm_worker.calibration.micro_batch import calibrate
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.mini import MODEL_DIR
from latentfarm_worker.models import Family, Memory, load_family


def load(source: str | Path, *, dtype: str, device: str, quantization: str = "none") -> Family:
    """Load a model as a worker does. ``source``: a diffusers folder, or empty for the bundled model."""
    return load_family(
        source or MODEL_DIR, dtype=getattr(torch, dtype), device=torch.device(device), memory=Memory(quantization)
    )


def make_engine(family: Family, *, micro_batch: int = 0, cuda_graphs: bool | None = None) -> Engine:
    """Build and warm up an engine as a worker does.

    ``micro_batch``, ``cuda_graphs``: [default: chosen or cached as a worker's].
    """
    settings = Settings(micro_batch=micro_batch, embedding_cache_bytes=0)
    engine = build.make_engine(family, settings)
    if cuda_graphs is not None:
        engine = Engine(
            family,
            slots=engine.slots,
            micro_batch=engine.micro_batch,
            decode_group=calibrate(family, settings.cache_dir).decode_group,
            cuda_graphs=cuda_graphs,
        )
    engine.warm_up()
    return engine


def render(engine: Engine, rows: Sequence[Row]) -> Iterator[tuple[int, Any]]:
    """Yield the number of each row and its pixels, uint8 (height, width, 3), as soon as they are rendered.

    Jobs are admitted as in a worker: never more than there are free slots.

    Raises:
        RuntimeError: A job failed.
    """
    waiting = iter([Job(batch="bench", index=number, **row) for number, row in enumerate(rows)])
    remaining = len(rows)
    while remaining:
        for _ in range(engine.free):
            if (job := next(waiting, None)) is None:
                break
            engine.admit(job)
        for outcome in engine.step():
            if not isinstance(outcome, Rendered):
                raise RuntimeError(f"{outcome.job.name}: {outcome.error}")
            remaining -= 1
            yield outcome.job.index, outcome.pixels.numpy()

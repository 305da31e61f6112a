"""Where the measurements touch ``latentfarm_worker``: its engine, fed in process, with nothing encoded or stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tests.bench.workload import Row

from latentfarm.job import Job
from latentfarm.settings import Settings
from latentfarm_worker import build
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.mini import MODEL_DIR
from latentfarm_worker.models import Family, load_family


def load(source: str | Path, *, dtype: str, device: str) -> Family:
    """Load a model as a worker does; ``source`` is a diffusers folder, or empty for the bundled model."""
    return load_family(source or MODEL_DIR, dtype=getattr(torch, dtype), device=torch.device(device))


def make_engine(family: Family, *, slots: int = 0) -> Engine:
    """Return an engine as a worker makes it, warmed up; 0 slots: as many as a worker finds best, or remembers."""
    engine = build.make_engine(family, Settings(slots=slots))
    engine.warm_up()
    return engine


def render(engine: Engine, rows: Sequence[Row]) -> Iterator[tuple[int, Any]]:
    """Yield each row's number and its pixels, uint8 (height, width, 3), as soon as they are there.

    Jobs are admitted as a worker does: never more than there is room for.

    Raises:
        RuntimeError: a job failed.
    """
    coming = iter([Job(batch="bench", index=number, **row) for number, row in enumerate(rows)])
    left = len(rows)
    while left:
        for _ in range(engine.free):
            if (job := next(coming, None)) is None:
                break
            engine.admit(job)
        for outcome in engine.step():
            if not isinstance(outcome, Rendered):
                raise RuntimeError(f"{outcome.job.name}: {outcome.error}")
            left -= 1
            yield outcome.job.index, outcome.pixels.numpy()

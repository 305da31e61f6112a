"""A tiny model as the engine and as diffusers' pipeline have it, for tests that compare their images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tests.support.pipelines import config_of, open_pipeline

from latentfarm_worker.models import load_family


class Subject(NamedTuple):
    """A tiny model of a kind: its family, its pipeline, and the pipeline's own scheduler config."""

    kind: str
    family: Any
    pipe: Any
    own_config: dict[str, Any]


def open_subject(folder: Path, kind: str) -> Subject:
    """Return the model of a folder."""
    pipe = open_pipeline(folder)
    family = load_family(folder, dtype=torch.float32, device=torch.device("cpu"))
    return Subject(kind, family, pipe, config_of(pipe))


@contextmanager
def own_scheduler_after(loaded: Subject) -> Iterator[Subject]:
    """Give the pipeline its own scheduler back at the end."""
    scheduler = loaded.pipe.scheduler
    yield loaded
    loaded.pipe.scheduler = scheduler

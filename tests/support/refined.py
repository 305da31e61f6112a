"""Jobs with refiners, and a tiny model that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from tests.support.controlled import catalogue_of
from tests.support.engines import make
from tests.support.tiny.refiners import make_refiner, make_xl

from latentfarm.job import Job
from latentfarm_worker.models import load_family


class Refinable(NamedTuple):
    """A tiny model, its folder and that of its refiners, `fine` and `other`."""

    folder: Path
    refiners: Path
    family: Any


def make_refinable(root: Path) -> Refinable:
    """Write the model and its refiners into an empty folder, and load them."""
    folder, refiners = make_xl(root / "xl"), root / "refiners"
    make_refiner(refiners / "fine", folder)
    # as the folder of a whole pipeline
    make_refiner(refiners / "other" / "unet", folder, seed=2)
    family = load(folder)
    family.use_catalogue(catalogue_of(refiners, root / "cache"))
    return Refinable(folder, refiners, family)


def load(folder: Path) -> Any:
    return load_family(folder, dtype=torch.float32, device=torch.device("cpu"))


def refined(index: int, scheduler: str | None = None, **fields: Any) -> Job:
    """Return a job with a refiner."""
    defaults: dict[str, Any] = {"refiner": "fine", "refiner_start": 0.6, "guidance_scale": (3.0, 1.0, 5.5)[index % 3]}
    return make(
        index, scheduler=scheduler, **{"width": 64, "height": 64, "num_inference_steps": 5, **defaults, **fields}
    )

"""The throwaway image of a worker's start, for models whose schedulers differ."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.engines import make, run
from tests.support.tiny import Kind, make_tiny

from latentfarm_worker.engine import sampling_plan
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

KINDS: tuple[Kind, ...] = ("sd1", "sd3", "flux", "flux2-distilled", "zimage-dynamic")


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_warms_up_with_a_scheduler_and_the_plan_of_its_model(tmp_path: Path, kind: Kind) -> None:
    family = load_family(make_tiny(tmp_path / kind, kind=kind), dtype=torch.float32, device=torch.device("cpu"))
    engine = Engine(family, slots=1)

    engine.warm_up()

    assert not engine.busy
    before = sampling_plan._cached_plan.cache_info().misses
    engine.prepare(make(0, num_inference_steps=family.recommended.steps))
    assert sampling_plan._cached_plan.cache_info().misses == before
    engine.admit(make(1, num_inference_steps=1))
    assert isinstance(run(engine)[1], Rendered)

"""Weights of several models that leave a CUDA device and come back, with CUDA graphs and without."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import make, pixels, run
from tests.support.sibling_models import make_siblings

from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.model_pool import ModelPool
from latentfarm_worker.models import Family, load_family

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda")
JOB = make(0, num_inference_steps=6, scheduler="euler")


def load(folder: Path, loaded: Mapping[str, torch.nn.Module]) -> Family:
    assert not loaded, "nothing is dropped on a GPU"
    return load_family(folder, dtype=torch.float32, device=CUDA)


def devices_of(family: Any) -> set[str]:
    return {tensor.device.type for module in family.modules.values() for tensor in module.parameters()}


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_an_image_goes_on_after_its_weights_were_on_the_host(tmp_path: Path, cuda_graphs: bool) -> None:  # noqa: FBT001
    first, second = make_siblings(tmp_path)
    pool = ModelPool(1)
    engine = Engine(pool.add("a", partial(load, first)), slots=2, cuda_graphs=cuda_graphs)
    pool.when_leaving("a", engine.forget_graphs)
    engine.admit(JOB)
    expected = pixels(run(engine)[0])
    engine.admit(JOB)
    assert not engine.step()
    other = pool.add("b", partial(load, second))
    # the parts that both have stay
    assert devices_of(engine.family) == {"cpu", "cuda"}
    assert devices_of(other) == {"cuda"}
    assert pool.use("a") > 0
    assert devices_of(engine.family) == {"cuda"}
    assert pixels(run(engine)[0]) == expected

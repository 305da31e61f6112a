"""Test the engine on a CUDA device as on the CPU, in the dtypes that workers use there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny import Kind, make_tiny

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.models import load_family

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

NAMES = ["euler", "euler_a", "dpm++2m", "heun", "unipc", None]


def jobs() -> list[Job]:
    return [
        Job(
            batch="b",
            index=index,
            prompt=f"image {index}",
            seed=index,
            scheduler=name,
            num_inference_steps=4 + index,
            guidance_scale=1.0 if index % 3 == 2 else 7.5,
        )
        for index, name in enumerate(NAMES)
    ]


def run(family: Any, wanted: list[Job], slots: int = 4) -> dict[int, torch.Tensor]:
    engine, done = Engine(family, slots=slots), {}
    coming = list(wanted)
    while coming or engine.busy:
        if coming:
            engine.admit(coming.pop(0))
        for result in engine.step():
            assert isinstance(result, Rendered), result
            done[result.job.index] = result.pixels
        engine.check_integrity()
    return done


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind: Kind = request.param
    return make_tiny(tmp_path_factory.mktemp("models") / kind, kind=kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_image_has_the_same_bytes_alone_and_in_a_batch(folder: Path, dtype: torch.dtype) -> None:
    family = load_family(folder, dtype=dtype, device=torch.device("cuda"))
    together = run(family, jobs())
    for job in jobs():
        assert torch.equal(run(family, [job])[job.index], together[job.index]), job


def test_float32_images_are_within_two_levels_of_the_cpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    on_cpu = run(load_family(folder, dtype=torch.float32, device=torch.device("cpu")), jobs())
    on_gpu = run(load_family(folder, dtype=torch.float32, device=torch.device("cuda")), jobs())
    for index, image in on_cpu.items():
        assert (image.int() - on_gpu[index].int()).abs().max() <= 2, index

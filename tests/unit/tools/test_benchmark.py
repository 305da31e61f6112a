"""``benchmark.measure``: everything that a first call costs is paid before the timing begins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import Faulty

from latentfarm.job import Job
from latentfarm.settings import Settings
from latentfarm_worker.tools.benchmark import measure
from latentfarm_worker.tools.bfloat16 import Bfloat16Gain, bfloat16_instructions, measure_gain

pytestmark = pytest.mark.unit


class Recorded(Faulty):
    """A family that records the shape of each of its calls."""

    def __init__(self, family: Any) -> None:
        super().__init__(family)
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Any) -> Any:
        self.calls.append(("predict", tuple(latents.shape)))
        return self.family.predict(latents, timesteps, conditioning)

    def decode(self, latents: torch.Tensor, **options: Any) -> Any:
        self.calls.append(("decode", tuple(latents.shape)))
        return self.family.decode(latents, **options)

    def encode(self, prompts: Iterable[Any]) -> Any:
        listed = list(prompts)
        self.calls.append(("encode", (len(listed),)))
        return self.family.encode(listed)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibration")


@pytest.mark.parametrize(("rows", "slots"), [(2, 1), (2, 4), (8, 2)])
def test_no_timed_call_of_the_model_has_a_new_shape(sd1: Any, rows: int, slots: int, cache: Path) -> None:
    family: Any = Recorded(sd1)
    # not of the native size, which every engine warms up by itself
    job = Job(batch="b", index=0, prompt="a", seed=0, scheduler="euler", num_inference_steps=3, width=96, height=72)
    settings = Settings(slots=slots, cache_dir=cache)
    [found] = measure(family, settings, [rows], job=job)
    assert (found.micro_batch, found.slots, found.warm_up_images, found.images) == (rows, slots, slots, 2 * slots)
    assert found.warm_up_s > 0
    # images are decoded one by one on a CPU: the engine's own, those of the warm-up, then the timed ones
    decoded = [at for at, (kind, _) in enumerate(family.calls) if kind == "decode"]
    assert len(decoded) == 1 + slots + 2 * slots
    begin = decoded[slots] + 1
    timed, before = set(family.calls[begin:]), set(family.calls[:begin])
    assert {kind for kind, _ in timed} == {"predict", "decode", "encode"}
    assert timed <= before, timed - before


def test_the_gain_of_bfloat16_is_measured_where_the_cpu_has_instructions_for_it(sd1: Any) -> None:
    gain = measure_gain(sd1, Settings(), 2)
    if not bfloat16_instructions():
        assert gain is None
        return
    assert gain is not None
    assert min(gain.float32_row_s, gain.bfloat16_row_s) > 0
    known = Bfloat16Gain("AMX-BF16", float32_row_s=0.0109, bfloat16_row_s=0.00545)
    expected = "bfloat16 (AMX-BF16) takes 0.50 of the time of float32: 5.45 against 10.9 ms a row with one thread"
    assert str(known) == expected

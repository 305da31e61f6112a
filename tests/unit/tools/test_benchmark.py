"""``benchmark.measure``: everything that a first call costs is paid before the timing begins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from tests.support.engines import Faulty

from latentfarm.job import Job
from latentfarm_worker.tools.benchmark import measure

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


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_no_timed_call_of_the_model_has_a_new_shape(sd1: Any, slots: int) -> None:
    family: Any = Recorded(sd1)
    # not of the native size, which every engine warms up by itself
    job = Job(batch="b", index=0, prompt="a", seed=0, scheduler="euler", num_inference_steps=3, width=96, height=72)
    [found] = measure(family, [slots], job=job, compiled=False)
    assert (found.slots, found.warm_up_images, found.images) == (slots, slots, 2 * slots)
    assert found.warm_up_s > 0
    # images are decoded one by one on a CPU: the engine's own, those of the warm-up, then the timed ones
    decoded = [at for at, (kind, _) in enumerate(family.calls) if kind == "decode"]
    assert len(decoded) == 1 + slots + 2 * slots
    begin = decoded[slots] + 1
    timed, before = set(family.calls[begin:]), set(family.calls[:begin])
    assert {kind for kind, _ in timed} == {"predict", "decode", "encode"}
    assert timed <= before, timed - before

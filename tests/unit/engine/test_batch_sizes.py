"""Batch sizes: found by trying, used by the engine, cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chaos.fake_worker import FakeFamily
from tests.support.rendering import full_batch

from latentfarm.job import Job
from latentfarm_worker.calibration.dummy_inputs import dummy_inputs
from latentfarm_worker.engine.batch_sizes import FILE, CachedBatchSizes, exact_batch_sizes
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models import Family
from latentfarm_worker.models.base import Family as AnyFamily
from latentfarm_worker.models.base import native_shape
from latentfarm_worker.models.text_encoder import Tensors

pytestmark = pytest.mark.unit

ROWS = 16


class Kernels(FakeFamily):
    """A device with another kernel for the batch sizes in ``others``; ``seen`` are the sizes of its calls."""

    step_s = 0.0

    def __init__(self, *others: int) -> None:
        super().__init__("fake", torch.device("cpu"), torch.float32)
        self.others = others
        self.seen: list[int] = []

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        assert len(latents) == len(timesteps) == len(conditioning["encoder_hidden_states"])
        self.seen.append(len(latents))
        # the sum of four thirds depends on where it begins
        thirds = latents[:, :1] / 3
        order = (0.1, 0.7, 0.2, 0.3) if len(latents) in self.others else (0.3, 0.2, 0.7, 0.1)
        total = torch.zeros_like(thirds)
        for weight in order:
            total = total + weight * thirds
        return total.expand_as(latents)


def sizes(family: Any, rows: int = ROWS) -> tuple[int, ...]:
    return exact_batch_sizes(family, native_shape(family), rows, on_forward=lambda: None)


def test_sizes_whose_kernels_add_in_another_order_are_left_out() -> None:
    assert sizes(Kernels()) == (2, 4, 6, 8, 10, 12, 14, 16)
    assert sizes(Kernels(2, 4, 6, 12)) == (8, 10, 14, 16)
    assert sizes(Kernels(*range(1, 16))) == (16,)
    assert sizes(Kernels(), 2) == (1, 2)


def test_a_model_whose_output_is_not_finite_is_called_with_the_full_batch_only() -> None:
    family = Kernels()
    family.predict = lambda latents, *_: latents * float("nan")  # type: ignore[method-assign]
    assert sizes(family) == (16,)


def test_every_forward_pass_of_a_trial_is_reported() -> None:
    reported: list[int] = []
    family = Kernels()
    exact_batch_sizes(family, native_shape(family), ROWS, on_forward=lambda: reported.append(len(family.seen)))
    assert reported == list(range(8))


@pytest.fixture(scope="module")
def found(sd1: Family) -> tuple[int, ...]:
    return sizes(sd1)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_at_the_sizes_found_any_row_among_any_others_keeps_its_bytes(
    sd1: Family, found: tuple[int, ...], data: st.DataObject
) -> None:
    inputs = dummy_inputs(sd1, native_shape(sd1), ROWS)
    latents = torch.randn(inputs.latents.shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 999))))
    whole = sd1.predict(latents, inputs.timesteps, inputs.conditioning)
    size = data.draw(st.sampled_from(found))
    rows = torch.tensor(data.draw(st.permutations(range(ROWS)))[:size])
    conditioning = {name: tensor[rows] for name, tensor in inputs.conditioning.items()}
    assert torch.equal(sd1.predict(latents[rows], inputs.timesteps[rows], conditioning), whole[rows])


def make(index: int, **fields: Any) -> Job:
    return Job(batch="b", index=index, prompt=f"p{index}", seed=index, scheduler="euler", **fields)


def render(engine: Engine) -> dict[int, bytes]:
    images = {}
    while engine.busy:
        for outcome in engine.step():
            assert isinstance(outcome, Rendered)
            images[outcome.job.index] = outcome.pixels.numpy().tobytes()
    return images


def test_the_engine_calls_the_model_with_the_next_size_that_holds_its_images() -> None:
    family = Kernels(2, 6)
    engine = Engine(family, slots=4)
    engine.admit(make(0, num_inference_steps=1))
    render(engine)
    assert family.seen[-1] == 3
    engine.admit(make(0, num_inference_steps=1))
    engine.admit(make(1, num_inference_steps=2))
    engine.admit(make(2, num_inference_steps=3, guidance_scale=1.0))
    tried = len(family.seen)
    render(engine)
    assert family.seen[tried:] == [5, 3, 1]
    engine.check_integrity()


def test_rows_of_negative_prompts_are_computed_only_in_the_guidance_interval() -> None:
    family = Kernels()
    engine = Engine(family, slots=1)
    engine.admit(make(0, num_inference_steps=4, guidance_interval=(0.25, 0.75)))
    render(engine)
    assert family.seen[-4:] == [1, 2, 2, 1]
    engine.check_integrity()


def test_the_sizes_of_a_shape_are_tried_once() -> None:
    family = Kernels()
    engine = Engine(family, slots=4)
    for size in (64, 128, 64, 128):
        engine.admit(make(0, num_inference_steps=1, width=size, height=64))
        render(engine)
    # the full batch and its parts: 8, then 4
    assert len(family.seen) == 8 + 4 + 4


def test_images_of_a_partly_filled_batch_have_the_bytes_of_a_full_one(sd1: Family) -> None:
    jobs = [make(index, num_inference_steps=2 + index, width=64, height=64) for index in range(4)]
    alone: dict[int, bytes] = {}
    for job in jobs:
        engine = Engine(sd1, slots=4)
        engine.admit(job)
        alone |= render(engine)
    full = Engine(sd1, slots=4, batch_sizes=full_batch)
    for job in jobs:
        full.admit(job)
    assert render(full) == alone


def test_sizes_are_cached_by_model_shape_and_rows(tmp_path: Path) -> None:
    def find(family: AnyFamily, shape: LatentShape, rows: int = ROWS) -> tuple[int, ...]:
        return CachedBatchSizes(tmp_path)(family, shape, rows, on_forward=lambda: None)

    first, again, other = Kernels(2), Kernels(), Kernels()
    shape = native_shape(first)
    assert find(first, shape) == find(again, shape) == (4, 6, 8, 10, 12, 14, 16)
    assert again.seen == []
    other.model_digest = "1" * 64
    assert find(other, shape) == find(again, shape._replace(chunks=2)) == (2, 4, 6, 8, 10, 12, 14, 16)
    assert find(again, shape, 4) == (1, 2, 3, 4)
    assert (tmp_path / FILE).exists()

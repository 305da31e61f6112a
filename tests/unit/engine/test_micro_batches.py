"""Micro-batches: every call of the model has the same number of rows, and a row's bytes do not depend on the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chaos.fake_worker import FakeFamily
from tests.support.engines import make, pixels, run

from latentfarm_worker.calibration.dummy_inputs import dummy_inputs
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.models.base import native_shape
from latentfarm_worker.text_encoders.prompt import Tensors, TokenizedPrompt

pytestmark = pytest.mark.unit

ROWS = 16


class Recording(FakeFamily):
    """A model that records the rows and the tokens of its calls; ``seen`` has both for each call."""

    step_s = 0.0

    def __init__(self) -> None:
        super().__init__("fake", torch.device("cpu"), torch.float32)
        self.seen: list[tuple[int, int]] = []

    def tokenize(self, prompt: str, syntax: Any = "plain") -> TokenizedPrompt:
        del syntax
        return TokenizedPrompt(((),) * (1 + prompt.count("BREAK")), count=2)

    def encode(self, prompts: Any) -> list[Tensors]:
        return [{"encoder_hidden_states": torch.zeros(77 * len(each.tokens.chunks), 4)} for each in prompts]

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        text = conditioning["encoder_hidden_states"]
        assert len(latents) == len(timesteps) == len(text)
        self.seen.append((len(latents), text.shape[1]))
        return torch.zeros_like(latents)


@pytest.mark.parametrize("rows", [2, 8])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_row_has_the_same_bytes_at_any_place_of_a_micro_batch_among_any_others(
    sd1: Any, rows: int, data: st.DataObject
) -> None:
    inputs = dummy_inputs(sd1, native_shape(sd1), ROWS)
    latents = torch.randn(inputs.latents.shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 999))))

    def predict(chosen: list[int]) -> torch.Tensor:
        conditioning = {name: tensor[chosen] for name, tensor in inputs.conditioning.items()}
        return sd1.predict(latents[chosen], inputs.timesteps[chosen], conditioning)  # type: ignore[no-any-return]

    one, other = (data.draw(st.permutations(range(ROWS)))[:rows] for _ in range(2))
    first, second = dict(zip(one, predict(one), strict=True)), dict(zip(other, predict(other), strict=True))
    assert all(torch.equal(first[row], second[row]) for row in first.keys() & second.keys())


def test_every_call_has_the_rows_of_a_micro_batch_and_a_step_has_as_many_calls_as_it_needs() -> None:
    family = Recording()
    engine = Engine(family, slots=6, micro_batch=4)
    for index in range(5):
        engine.admit(make(index, num_inference_steps=1 + index % 2, scheduler="euler"))
    engine.step()
    assert family.seen == [(4, 77)] * 3
    engine.step()
    assert family.seen == [(4, 77)] * 4
    assert not engine.busy


def test_without_determinism_the_last_call_is_not_padded() -> None:
    family = Recording()
    engine = Engine(family, slots=6, micro_batch=4, deterministic=False)
    for index in range(3):
        engine.admit(make(index, num_inference_steps=1, scheduler="euler"))
    engine.step()
    assert family.seen == [(4, 77), (2, 77)]


def test_rows_of_negative_prompts_are_computed_only_in_the_guidance_interval() -> None:
    family = Recording()
    engine = Engine(family, slots=1, deterministic=False)
    engine.admit(make(0, num_inference_steps=4, scheduler="euler", guidance_interval=(0.25, 0.75)))
    run(engine)
    assert [rows for rows, _ in family.seen] == [1, 2, 2, 1]


def test_prompts_of_several_lengths_run_together_each_length_in_calls_of_its_own() -> None:
    family = Recording()
    engine = Engine(family, slots=4, micro_batch=2)
    for index, prompt in enumerate(["short", "long BREAK longer", "short", "long BREAK longer"]):
        engine.admit(make(index, prompt=prompt, num_inference_steps=1, scheduler="euler"))
    assert len(engine.step()) == 4
    assert family.seen == [(2, 77), (2, 77), (2, 154), (2, 154)]


def test_larger_images_have_micro_batches_of_fewer_rows() -> None:
    family = Recording()
    engine = Engine(family, slots=8, micro_batch=8)
    for size, rows in ((64, 8), (128, 2), (192, 2), (96, 2), (88, 4)):
        engine.admit(make(0, num_inference_steps=1, width=size, height=size, scheduler="euler"))
        [outcome] = run(engine).values()
        assert isinstance(outcome, Rendered)
        assert (outcome.micro_batch, family.seen.pop()) == (rows, (rows, 77))


@pytest.mark.parametrize("micro_batch", [0, 1, 3])
def test_a_micro_batch_is_an_even_number_of_rows(micro_batch: int) -> None:
    with pytest.raises(ValueError, match="write an even number"):
        Engine(Recording(), slots=2, micro_batch=micro_batch)


def test_bytes_do_not_depend_on_the_number_of_slots(sd1: Any) -> None:
    job = make(0, scheduler="euler_a", num_inference_steps=3)
    found = set()
    for slots in (2, 3, 8):
        engine = Engine(sd1, slots=slots, micro_batch=4)
        for index in range(1, slots):
            engine.admit(make(index, num_inference_steps=2))
        engine.admit(job)
        found.add(pixels(run(engine)[0]))
    assert len(found) == 1


def test_an_image_with_noise_has_the_same_bytes_if_its_noise_is_drawn_in_blocks(
    sd1: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = []
    for max_bytes in (32 * 1024**2, 2 * 4 * 4 * 8 * 8):
        monkeypatch.setattr("latentfarm_worker.engine.noise.MAX_BYTES", max_bytes)
        engine = Engine(sd1, slots=1)
        engine.admit(make(0, scheduler="euler_a", num_inference_steps=7))
        images.append(pixels(run(engine)[0]))
    assert images[0] == images[1]


@pytest.mark.parametrize(("embeds_guidance", "images"), [(False, 1), (True, 2)])
def test_a_model_with_embedded_guidance_fills_all_rows_with_images(*, embeds_guidance: bool, images: int) -> None:
    family = Recording()
    family.embeds_guidance = embeds_guidance
    engine = Engine(family, slots=1, micro_batch=2)
    assert engine.free == images
    for index in range(images):
        engine.admit(make(index))
    assert engine.free == 0
    run(engine)
    # three steps, and no row of padding
    assert family.seen == [(2, 77)] * 3

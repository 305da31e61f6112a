"""Continuous batching: neighbours, capacity, cancellation, failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.company import render_in_company
from tests.support.engines import JOBS, Faulty, make, pixels, render_alone, run

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.models import Family
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors

pytestmark = pytest.mark.unit


class Poisoned:
    """A family whose model returns NaN for the rows of one prompt."""

    def __init__(self, family: Any, prompt: str) -> None:
        self.family = family
        self.mark = family.encode([Prompt(family.tokenize(prompt))])[0]["encoder_hidden_states"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        output: torch.Tensor = self.family.predict(latents, timesteps, conditioning).clone()
        output[(conditioning["encoder_hidden_states"] == self.mark).all(dim=2).all(dim=1)] = torch.nan
        return output


@pytest.fixture(scope="module")
def xl_alone(sdxl: Any) -> list[bytes]:
    return [render_alone(sdxl, job) for job in JOBS]


@settings(max_examples=8, deadline=None)
@given(which=st.integers(0, len(JOBS) - 1), seed=st.integers(0, 2**32), company=st.integers(1, 6))
def test_the_same_bytes_alone_and_in_any_company(
    sd1: Any, alone: list[bytes], which: int, seed: int, company: int
) -> None:
    assert render_in_company(sd1, JOBS[which], seed=seed, company=company) == alone[which]


@settings(max_examples=2, deadline=None)
@given(which=st.integers(0, len(JOBS) - 1), seed=st.integers(0, 2**32), company=st.integers(1, 6))
def test_an_xl_model_gives_the_same_bytes_in_any_company(
    sdxl: Any, xl_alone: list[bytes], which: int, seed: int, company: int
) -> None:
    assert render_in_company(sdxl, JOBS[which], seed=seed, company=company) == xl_alone[which]


def test_without_padding_images_differ_by_at_most_one_in_255(sd1: Any, alone: list[bytes]) -> None:
    engine = Engine(sd1, slots=3, deterministic=False)
    engine.admit(JOBS[0])
    engine.admit(make(1, guidance_scale=1.0, num_inference_steps=2))
    got = run(engine)[0]
    assert isinstance(got, Rendered)
    wanted = torch.frombuffer(bytearray(alone[0]), dtype=torch.uint8).reshape(got.pixels.shape)
    assert (got.pixels.int() - wanted.int()).abs().max() <= 1


def test_a_result_records_how_it_was_made(sd1: Any) -> None:
    engine = Engine(sd1, slots=1)
    engine.admit(make(4, scheduler="euler", width=96, height=64, prompt="long " * 40))
    result = run(engine)[4]
    assert isinstance(result, Rendered)
    assert (result.width, result.height, result.scheduler) == (96, 64, "EulerDiscreteScheduler")
    assert result.pixels.dtype == torch.uint8
    assert result.truncated == ("prompt",)
    assert set(result.timings) == {"wait", "text", "denoise", "decode"}
    assert all(seconds > 0 for seconds in result.timings.values())


def test_capacity_is_counted_in_rows(sd1: Any) -> None:
    engine = Engine(sd1, slots=2)
    for index in range(4):
        engine.admit(make(index, guidance_scale=1.0, num_inference_steps=2, scheduler="euler"))
    assert engine.free == 0
    engine.step()
    assert engine.remaining() == [(f"b/{index}", 1) for index in range(4)]  # four unguided jobs in two slots
    engine.step()
    assert (engine.free, engine.busy) == (2, False)
    engine.admit(make(9))
    assert engine.free == 1


def test_an_image_of_another_shape_is_overtaken_by_at_most_as_many_as_there_are_rows(sd1: Any) -> None:
    engine, order = Engine(sd1, slots=2), []
    engine.admit(make(0, num_inference_steps=9, scheduler="euler"))
    engine.admit(make(1, num_inference_steps=1, scheduler="euler", width=128))
    for index in range(2, 10):
        engine.admit(make(index, num_inference_steps=1, scheduler="euler"))
    while engine.busy:
        order += [result.job.index for result in engine.step()]
    assert order == [2, 3, 4, 5, 0, 1, 6, 7, 8, 9]


class Handle:
    """An opaque handle, as the worker's lease is."""


def test_an_image_keeps_its_callers_handle_from_the_queue_to_its_end(sd1: Any) -> None:
    first, second, third = Handle(), Handle(), Handle()
    engine = Engine(sd1, slots=1)
    # two incarnations of one job differ by their handles only
    for handle in (first, second, third):
        engine.admit(engine.prepare(make(0, num_inference_steps=1, scheduler="euler"), handle))
    assert engine.remaining() == [(first, None), (second, None), (third, None)]
    assert engine.cancel(second)
    assert not engine.cancel(Handle())
    assert [outcome.handle for outcome in engine.step()] == [first]
    assert engine.abort_all() == [third]


def test_cancelling_frees_rows_before_the_next_step(sd1: Any) -> None:
    engine = Engine(sd1, slots=1)
    engine.admit(make(0, num_inference_steps=50))
    engine.admit(make(1, num_inference_steps=50))
    engine.admit(make(2, num_inference_steps=1, scheduler="euler"))
    engine.step()
    assert engine.cancel("b/0")
    engine.check_integrity()
    assert engine.cancel("b/1")  # it waits
    assert not engine.cancel("b/0")
    assert [result.job.index for result in engine.step()] == [2]
    assert engine.free == 1
    assert not engine.busy


def test_a_job_whose_output_is_nan_fails_alone(sd1: Any, alone: list[bytes]) -> None:
    engine = Engine(Poisoned(sd1, "poison"), slots=3)
    engine.admit(make(1, prompt="poison", num_inference_steps=2))
    engine.admit(JOBS[0])
    engine.admit(make(2, num_inference_steps=3))
    done = run(engine)
    failed = done[1]
    assert isinstance(failed, Failed)
    assert failed.error.code == "non_finite"
    assert pixels(done[0]) == alone[0]
    engine.admit(make(3))  # the rows of the failed one are clean again
    assert isinstance(run(engine)[3], Rendered)


def test_a_refused_job_leaves_nothing_behind(sd1: Any) -> None:
    engine = Engine(sd1, slots=2)
    for options in ({"use_karras": True}, {"thresholding": True}):
        with pytest.raises(JobError) as refused:
            engine.admit(make(0, scheduler="ddim", scheduler_options=options))
        assert refused.value.code == "scheduler"
    assert (engine.free, engine.busy) == (2, False)
    engine.check_integrity()


def test_texts_are_encoded_once(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = sd1.encode

    def record_and_encode(prompts: Sequence[Prompt]) -> Any:
        encoded.append(len(prompts))
        return encode(prompts)

    monkeypatch.setattr(sd1, "encode", record_and_encode)
    engine = Engine(sd1, slots=2)
    for index in range(3):
        engine.admit(make(index, prompt="same", num_inference_steps=1, scheduler="euler"))
    run(engine)
    assert encoded == [2]


def test_no_slots_is_refused(sd1: Any) -> None:
    with pytest.raises(ValueError, match="slots is 0"):
        Engine(sd1, slots=0)


def test_aborting_drops_everything(sd1: Any) -> None:
    engine = Engine(sd1, slots=1)
    engine.admit(make(0))
    engine.admit(make(1))
    engine.step()
    assert engine.abort_all() == ["b/0", "b/1"]
    engine.check_integrity()
    assert (engine.free, engine.busy, engine.step()) == (1, False, [])


def test_if_the_text_encoder_fails_its_job_keeps_waiting(sd1: Any) -> None:
    def encode(_: Sequence[Prompt]) -> Any:
        raise RuntimeError("boom")

    engine = Engine(Faulty(sd1, encode=encode), slots=1)
    engine.admit(make(0))
    with pytest.raises(RuntimeError, match="boom"):
        engine.step()
    assert engine.abort_all() == ["b/0"]


def test_remaining_evaluations_are_reported_for_running_and_waiting_images(sd1: Any) -> None:
    engine = Engine(sd1, slots=1)
    for index in range(2):
        engine.admit(make(index, num_inference_steps=4, scheduler="euler"))
    assert engine.remaining() == [("b/0", None), ("b/1", None)]
    engine.step()
    assert engine.remaining() == [("b/1", None), ("b/0", 3)]


def test_a_warm_engine_is_empty_and_renders_the_same_bytes(family: Family) -> None:
    cold, warm = Engine(family, slots=2), Engine(family, slots=2)
    warm.warm_up()
    assert not warm.busy
    warm.check_integrity()
    images = []
    for engine in (cold, warm):
        engine.admit(Job(batch="b", index=0, prompt="a cat", seed=3, num_inference_steps=4))
        outcomes: list[Rendered | Failed] = []
        while engine.busy:
            outcomes += engine.step()
        assert isinstance(outcomes[0], Rendered)
        images.append(outcomes[0].pixels)
    assert torch.equal(*images)

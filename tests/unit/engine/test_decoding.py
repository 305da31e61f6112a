"""From the last latents to a picture: what is none is decoded once more or fails, and nothing else with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.engines import JOBS, Faulty, make, pixels, run

from latentfarm_worker.engine.engine import Engine, Failed, Rendered

pytestmark = pytest.mark.unit


Pictures = tuple[torch.Tensor, torch.Tensor]


def decoder_that_needs_float32(family: Any, wrong: Any, asked: list[bool]) -> Any:
    def decode(latents: torch.Tensor, *, float32: bool = False) -> Pictures:
        asked.append(float32)
        return family.decode(latents) if float32 else wrong(latents)  # type: ignore[no-any-return]

    return decode


def black(latents: torch.Tensor) -> Pictures:
    return torch.zeros((len(latents), 64, 64, 3), dtype=torch.uint8), torch.ones(len(latents), dtype=torch.bool)


def grey(latents: torch.Tensor) -> Pictures:
    return black(latents)[0] + 127, black(latents)[1]


def not_finite(latents: torch.Tensor) -> Pictures:
    return grey(latents)[0], torch.zeros(len(latents), dtype=torch.bool)


def test_a_decoder_that_goes_nan_fails_the_job(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd1, "_decode", lambda *_: torch.full((1, 3, 64, 64), torch.inf))
    engine = Engine(sd1, slots=1)
    engine.admit(make(0))
    failed = run(engine)[0]
    assert isinstance(failed, Failed)
    assert failed.error.code == "nan"


@pytest.mark.parametrize("wrong", [black, grey, not_finite])
def test_a_picture_that_is_none_is_decoded_once_more_in_float32(sd1: Any, alone: list[bytes], wrong: Any) -> None:
    asked: list[bool] = []
    decode = decoder_that_needs_float32(sd1, wrong, asked)
    engine = Engine(Faulty(sd1, vae_dtype=torch.float16, decode=decode), slots=3)
    engine.admit(JOBS[0])
    assert pixels(run(engine)[0]) == alone[0]
    assert asked == [False, True]


@pytest.mark.parametrize(("wrong", "code"), [(black, "flat"), (grey, "flat"), (not_finite, "nan")])
@pytest.mark.parametrize(("vae_dtype", "tries"), [(torch.float16, [False, True]), (torch.float32, [False])])
def test_where_float32_does_not_help_the_job_has_failed(
    sd1: Any, wrong: Any, code: str, vae_dtype: torch.dtype, tries: list[bool]
) -> None:
    asked: list[bool] = []

    def decode(latents: torch.Tensor, *, float32: bool = False) -> Pictures:
        asked.append(float32)
        return wrong(latents)  # type: ignore[no-any-return]

    engine = Engine(Faulty(sd1, vae_dtype=vae_dtype, decode=decode), slots=1)
    engine.admit(make(0))
    failed = run(engine)[0]
    assert isinstance(failed, Failed)
    assert (failed.error.code, asked) == (code, tries)


def test_a_picture_of_two_colours_is_one(sd1: Any) -> None:
    almost = grey(torch.empty(1))
    almost[0][0, 63, 63, 2] = 128
    engine = Engine(Faulty(sd1, decode=lambda _: almost), slots=1)
    engine.admit(make(0))
    assert isinstance(run(engine)[0], Rendered)


def test_a_decoder_that_breaks_loses_neither_the_pictures_before_it_nor_the_jobs_behind(sd1: Any) -> None:
    calls = iter(range(1000))

    def decode(latents: torch.Tensor) -> Pictures:
        if next(calls) == 1:
            raise RuntimeError("boom")
        return sd1.decode(latents)  # type: ignore[no-any-return]

    engine = Engine(Faulty(sd1, decode=decode), slots=3)
    for index in range(3):
        engine.admit(make(index, num_inference_steps=1, scheduler="euler"))
    assert [result.job.index for result in engine.step()] == [0]
    assert engine.calls_left() == {"b/1": 0, "b/2": 0}
    assert [result.job.index for result in engine.step()] == [1, 2]

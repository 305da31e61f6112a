"""Decoding: an image that is blank or not finite is decoded again in float32, else its job fails alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.engines import JOBS, Faulty, make, pixels, run

from latentfarm_worker.engine.engine import Engine, Failed, Rendered

pytestmark = pytest.mark.unit


Images = tuple[torch.Tensor, torch.Tensor]


def decoder_that_needs_float32(family: Any, invalid: Any, calls: list[bool]) -> Any:
    def decode(latents: torch.Tensor, *, float32: bool = False) -> Images:
        calls.append(float32)
        return family.decode(latents) if float32 else invalid(latents)  # type: ignore[no-any-return]

    return decode


def black(latents: torch.Tensor) -> Images:
    return torch.zeros((len(latents), 64, 64, 3), dtype=torch.uint8), torch.ones(len(latents), dtype=torch.bool)


def grey(latents: torch.Tensor) -> Images:
    return black(latents)[0] + 127, black(latents)[1]


def not_finite(latents: torch.Tensor) -> Images:
    return grey(latents)[0], torch.zeros(len(latents), dtype=torch.bool)


def test_a_decoder_whose_output_is_nan_fails_the_job(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd1, "_decode", lambda *_: torch.full((1, 3, 64, 64), torch.inf))
    engine = Engine(sd1, slots=1)
    engine.admit(make(0))
    failed = run(engine)[0]
    assert isinstance(failed, Failed)
    assert failed.error.code == "non_finite"


@pytest.mark.parametrize("invalid", [black, grey, not_finite])
def test_an_invalid_image_is_decoded_again_in_float32(sd1: Any, alone: list[bytes], invalid: Any) -> None:
    calls: list[bool] = []
    decode = decoder_that_needs_float32(sd1, invalid, calls)
    engine = Engine(Faulty(sd1, vae_dtype=torch.float16, decode=decode), slots=3)
    engine.admit(JOBS[0])
    assert pixels(run(engine)[0]) == alone[0]
    assert calls == [False, True]


@pytest.mark.parametrize(
    ("invalid", "code"), [(black, "blank_image"), (grey, "blank_image"), (not_finite, "non_finite")]
)
@pytest.mark.parametrize(("vae_dtype", "tries"), [(torch.float16, [False, True]), (torch.float32, [False])])
def test_if_float32_does_not_help_the_job_fails(
    sd1: Any, invalid: Any, code: str, vae_dtype: torch.dtype, tries: list[bool]
) -> None:
    calls: list[bool] = []

    def decode(latents: torch.Tensor, *, float32: bool = False) -> Images:
        calls.append(float32)
        return invalid(latents)  # type: ignore[no-any-return]

    engine = Engine(Faulty(sd1, vae_dtype=vae_dtype, decode=decode), slots=1)
    engine.admit(make(0))
    failed = run(engine)[0]
    assert isinstance(failed, Failed)
    assert (failed.error.code, calls) == (code, tries)


def test_an_image_of_two_colours_is_valid(sd1: Any) -> None:
    almost = grey(torch.empty(1))
    almost[0][0, 63, 63, 2] = 128
    engine = Engine(Faulty(sd1, decode=lambda _: almost), slots=1)
    engine.admit(make(0))
    assert isinstance(run(engine)[0], Rendered)


def test_if_the_decoder_fails_neither_earlier_nor_later_images_are_lost(sd1: Any) -> None:
    count = iter(range(1000))

    def decode(latents: torch.Tensor) -> Images:
        if next(count) == 1:
            raise RuntimeError("boom")
        return sd1.decode(latents)  # type: ignore[no-any-return]

    engine = Engine(Faulty(sd1, decode=decode), slots=3)
    for index in range(3):
        engine.admit(make(index, num_inference_steps=1, scheduler="euler"))
    assert [result.job.index for result in engine.step()] == [0]
    assert engine.remaining() == [("b/1", 0), ("b/2", 0)]
    assert [result.job.index for result in engine.step()] == [1, 2]

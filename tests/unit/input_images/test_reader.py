"""Inputs are fetched, checked by their digests, decoded and encoded once while they are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageFilter
from tests.support.engines import Faulty, make
from tests.support.input_images import Inputs, digest, paint, paint_mask, png

from latentfarm.errors import JobError
from latentfarm.storage.keys import input_key
from latentfarm_worker.input_images import reader as reading
from latentfarm_worker.input_images.reader import InputReader

pytestmark = pytest.mark.unit

SIZE = {"width": 64, "height": 64}


def reader_of(inputs: Inputs, family: Any) -> InputReader:
    return InputReader(inputs, family)  # type: ignore[arg-type]


def test_the_posterior_is_the_vaes(sd1: Any) -> None:
    inputs = Inputs()
    found = reader_of(inputs, sd1).read(make(0, image=inputs.add(paint(1)), **SIZE))
    image = torch.from_numpy(np.asarray(paint(1), dtype=np.float32) / 255.0).permute(2, 0, 1)[None] * 2 - 1
    with torch.inference_mode():
        wanted = sd1.vae.encode(image).latent_dist
    assert found.posterior is not None
    assert torch.allclose(found.posterior.mean, wanted.mean[0], atol=1e-5)
    assert torch.allclose(found.posterior.std, wanted.std[0], atol=1e-5)


def test_encoding_does_not_depend_on_what_the_decoders_thread_sets(sd1: Any) -> None:
    image = torch.from_numpy(np.array(paint(1, 256, 256)))
    wanted = sd1.encode_image(image).mean
    sd1.vae.use_tiling = True
    try:
        assert torch.equal(sd1.encode_image(image).mean, wanted)
    finally:
        sd1.vae.use_tiling = False


def test_a_mask_is_blurred_as_by_diffusers(sd1: Any) -> None:
    inputs = Inputs()
    job = make(0, image=inputs.add(paint(1)), mask_image=inputs.add(paint_mask()), mask_blur=5, **SIZE)
    mask = reader_of(inputs, sd1).read(job).mask
    assert mask is not None
    blurred = np.asarray(paint_mask().filter(ImageFilter.GaussianBlur(5)), dtype=np.float32) / 255.0
    assert np.abs(mask.numpy() - blurred).max() < 1e-6


def test_files_are_fetched_once_and_images_encoded_once_for_each_size(sd1: Any) -> None:
    inputs, encoded = Inputs(), []

    def encode(pixels: torch.Tensor, kept: torch.Tensor | None = None) -> Any:
        encoded.append(tuple(pixels.shape))
        return sd1.encode_image(pixels, kept)

    image = inputs.add(paint(1))
    reader = reader_of(inputs, Faulty(sd1, encode_image=encode))
    for at in range(6):
        reader.read(make(at, image=image, width=64 + 32 * (at % 2), height=64, resize="crop"))
    assert inputs.gets == [input_key(image)]
    assert encoded == [(64, 64, 3), (64, 96, 3)]


def read_error(inputs: Inputs, family: Any, **fields: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        reader_of(inputs, family).read(make(0, **{**SIZE, **fields}))
    return caught.value


def test_each_fault_of_an_input_has_its_code_and_names_field_and_digest(
    sd1: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = Inputs()
    missing = digest(b"nowhere")
    error = read_error(inputs, sd1, image=missing)
    assert error.code == "input_missing"
    error = read_error(inputs, sd1, image=inputs.put(b"no image"))
    assert (error.code, "is not an image of a known format" in str(error)) == ("input_invalid", True)
    error = read_error(inputs, sd1, image=inputs.put(png(paint(1))[:-200]))
    assert error.code == "input_invalid"
    changed = inputs.add(paint(3))
    inputs.put(png(paint(4)), under=changed)
    error = read_error(inputs, sd1, image=changed)
    assert (error.code, changed in str(error)) == ("input_changed", True)
    image = inputs.add(paint(5))
    error = read_error(inputs, sd1, image=image, mask_image=inputs.add(paint_mask(96, 64)))
    assert (error.code, "mask_image sha256:" in str(error)) == ("input_size", True)
    monkeypatch.setattr(reading, "MAX_INPUT_BYTES", 500)
    error = read_error(inputs, sd1, image=image)
    assert (error.code, "than the 500 that are allowed: store it smaller" in str(error)) == ("input_too_large", True)


def test_memory_that_is_short_once_fails_no_job_and_twice_its_own(sd1: Any) -> None:
    inputs, shortages = Inputs(), iter([True, False, True, True])

    def encode(pixels: torch.Tensor, kept: torch.Tensor | None = None) -> Any:
        if next(shortages):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sd1.encode_image(pixels, kept)

    family = Faulty(sd1, encode_image=encode)
    assert reader_of(inputs, family).read(make(0, image=inputs.add(paint(1)), **SIZE)).posterior is not None
    error = read_error(inputs, family, image=inputs.add(paint(2)))
    assert (error.code, "not enough memory for this job alone" in str(error)) == ("oom", True)


def test_control_images_get_the_jobs_size_and_image_prompts_keep_theirs(sd1: Any) -> None:
    inputs = Inputs()
    job = make(
        0,
        controlnet="edges,depth",
        control_image=(inputs.add(paint(1, 96, 96)), inputs.add(paint(2))),
        ip_adapter="face",
        ip_adapter_image=inputs.add(paint(3, 40, 50)),
        resize="stretch",
        **SIZE,
    )
    found = reader_of(inputs, sd1).read(job)
    assert (found.image, found.posterior, found.mask) == (None, None, None)
    assert [tuple(each.shape) for each in found.controls] == [(64, 64, 3)] * 2
    assert (found.controls[1].numpy() == np.asarray(paint(2))).all()
    assert [tuple(each.shape) for each in found.image_prompts] == [(50, 40, 3)]

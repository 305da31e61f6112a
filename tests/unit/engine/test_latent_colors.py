"""Small images of latents without the VAE, on made-up decoders and on the bundled model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.engines import make

from latentfarm_worker.engine import latent_colors
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.engine.latent_colors import LatentColors
from latentfarm_worker.mini import MODEL_DIR
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

STEPS = 20


def linear_decoder(weights: torch.Tensor, latents: torch.Tensor, factor: int) -> torch.Tensor:
    """Return the image, uint8, of a decoder whose blocks have one colour: ``weights`` (3, C) times the latents."""
    colors = torch.einsum("kc,chw->hwk", weights, latents) + 0.5
    levels = (colors * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1)


def averages(pixels: torch.Tensor, side: int) -> NDArray[np.float64]:
    """Return the average colours of ``side`` x ``side`` parts of a square image."""
    size = len(pixels) // side
    blocks: NDArray[np.float64] = pixels.numpy().reshape(side, size, side, size, 3).mean(axis=(1, 3))
    return blocks


def correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 16),
    height=st.integers(5, 20),
    width=st.integers(5, 20),
    factor=st.sampled_from([1, 4, 8, 32]),
    scale=st.sampled_from([0.1, 1.0, 15.0]),
    images=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_a_linear_decoder_is_recovered(
    channels: int, height: int, width: int, factor: int, scale: float, images: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn((3, channels), generator=generator)
    # most colours are within their range
    weights *= 0.12 / scale / weights.norm(dim=1, keepdim=True)
    colors = LatentColors()
    for _ in range(images):
        latents = scale * torch.randn((channels, height, width), generator=generator)
        colors.add(latents, linear_decoder(weights, latents, factor))
    unseen = scale * torch.randn((channels, height, width), generator=generator)
    found, wanted = colors.image(unseen), linear_decoder(weights, unseen, 1).numpy()
    assert found is not None
    assert found.shape == (height, width, 3)
    # few pixels determine many weights only so far
    assert np.abs(found.astype(int) - wanted).max() <= (1 if images * height * width >= 50 * channels else 10)


def test_a_channel_that_is_always_zero_does_no_harm() -> None:
    colors, latents = LatentColors(), torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(1))
    latents[2] = 0
    colors.add(latents, linear_decoder(torch.full((3, 4), 0.1), latents, 8))
    found = colors.image(latents)
    assert found is not None
    assert np.abs(found.astype(int) - linear_decoder(torch.full((3, 4), 0.1), latents, 1).numpy()).max() <= 1


def test_there_is_no_image_before_the_first_decoded_one() -> None:
    assert LatentColors().image(torch.zeros((4, 8, 8))) is None


def test_what_is_not_a_number_is_black_and_the_rest_is_as_it_was() -> None:
    colors, latents = LatentColors(), torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(1))
    colors.add(latents, linear_decoder(torch.full((3, 4), 0.1), latents, 8))
    before = colors.image(latents)
    latents[1, 2, 3] = float("nan")
    latents[1, 4, 5] = float("inf")
    after = colors.image(latents)
    assert before is not None
    assert after is not None
    assert after[2, 3].tolist() == [0, 0, 0]
    assert after[4, 5].tolist() == [255, 255, 255]
    assert (before != after).any(axis=2).sum() == 2


def test_after_many_images_the_map_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_colors, "_MAX_IMAGES", 3)
    colors, found = LatentColors(), []
    for seed in range(5):
        latents = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(seed))
        colors.add(latents, torch.full((64, 64, 3), 50 * seed, dtype=torch.uint8))
        image = colors.image(torch.zeros((4, 8, 8)))
        assert image is not None
        found.append(int(image[0, 0, 0]))
    assert found[2] > found[1] > found[0]
    assert found[2] == found[3] == found[4]


@pytest.fixture(scope="module")
def mini() -> Iterator[Engine]:
    engine = Engine(load_family(MODEL_DIR, dtype=torch.float32, device=torch.device("cpu")), slots=3)
    engine.warm_up()
    yield engine
    engine.abort_all()


def test_after_its_warm_up_a_worker_shows_images_of_mini_that_resemble_them_from_early_steps_on(mini: Engine) -> None:
    prompts = ("a small yellow star on a blue background", "an orange ring on a white background", "a purple heart")
    colors, seen, finished = LatentColors(), dict[tuple[int, int], NDArray[np.uint8]](), {}
    for index, prompt in enumerate(prompts):
        mini.admit(make(index, prompt=prompt, num_inference_steps=STEPS, guidance_scale=4.0))
    while mini.busy:
        outcomes = mini.step()
        mini.view_slots()
        views = mini.slot_viewer.take()
        assert views is not None
        for each in views.decoded:
            colors.add(each.latents, each.pixels)
        for at, latents in views.estimates.items():
            image = colors.image(latents)
            assert image is not None
            seen[int(str(views.slots[at].handle)[-1]), views.slots[at].step] = image
        for outcome in outcomes:
            assert isinstance(outcome, Rendered)
            finished[outcome.job.index] = averages(outcome.pixels, 16)
    assert {(index, step) for index in range(3) for step in range(1, STEPS)} == {*seen}
    for share, least in ((0.2, 0.6), (0.5, 0.8), (0.8, 0.8)):
        found = [correlation(seen[index, round(share * STEPS)], finished[index]) for index in range(3)]
        print(share, found)
        assert min(found) >= least, (share, found)

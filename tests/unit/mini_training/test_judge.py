"""The judge is right about what was drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mini_training import world
from mini_training.judge import blobs, judge, matches, nearest_colour, pair_matches

pytestmark = pytest.mark.unit


def _truth(count: int) -> list[tuple[world.Combination, world.Image]]:
    rng = np.random.default_rng(7)
    every = list(world.combinations())
    chosen = [every[int(i)] for i in rng.integers(len(every), size=count)]
    return [(c, world.draw(world.scene_of(c, rng))) for c in chosen]


TRUTH = _truth(100)


def _right(images: list[world.Image]) -> dict[str, float]:
    verdicts = [matches(judge(p), c) for p, (c, _) in zip(images, TRUTH, strict=True)]
    return {key: float(np.mean([v[key] for v in verdicts])) for key in verdicts[0]}


def test_the_judge_is_right_on_drawn_truth() -> None:
    assert min(_right([p for _, p in TRUTH]).values()) >= 0.99


def test_noise_does_not_mislead_the_judge() -> None:
    rng = np.random.default_rng(8)
    noisy = [np.clip(p + rng.normal(0, 8, p.shape), 0, 255).astype(np.uint8) for _, p in TRUTH]
    assert min(_right(noisy).values()) >= 0.99


def test_blur_does_not_mislead_the_judge() -> None:
    def blurred(image: world.Image) -> world.Image:
        soft = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
        taps = [soft[i : i + 128, j : j + 128] for i in range(3) for j in range(3)]
        mean: world.Image = np.rint(np.mean(taps, axis=0)).astype(np.uint8)
        return mean

    assert min(_right([blurred(p) for _, p in TRUTH]).values()) >= 0.99


def test_pairs_are_read_from_left_to_right() -> None:
    rng = np.random.default_rng(9)
    scenes = [world.pair_scene(rng) for _ in range(40)]
    right = [all(pair_matches(judge(world.draw(s)), s).values()) for s in scenes]
    assert np.mean(right) >= 0.98


@pytest.mark.parametrize("side", [64, 96, 200])
def test_the_judge_works_at_other_image_sizes(side: int) -> None:
    rng = np.random.default_rng(10)
    right = [all(matches(judge(world.draw(world.scene_of(c, rng), side)), c).values()) for c, _ in TRUTH[:40]]
    assert np.mean(right) >= 0.97


def test_an_empty_image_has_no_object() -> None:
    verdict = judge(np.full((128, 128, 3), (35, 70, 220), dtype=np.uint8))
    assert verdict.background == "blue"
    assert verdict.things == ()
    assert verdict.thing.shape == ""


def test_noise_alone_is_no_shape() -> None:
    noise = np.random.default_rng(11).integers(0, 256, size=(128, 128, 3), dtype=np.uint8)
    assert judge(noise).thing.match < 0.6


def test_a_colour_far_from_all_names_has_none() -> None:
    assert nearest_colour(np.asarray([120, 120, 60], dtype=np.float32)) == ""
    assert nearest_colour(np.asarray([210, 36, 44], dtype=np.float32)) == "red"


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.bool_, (9, 11), elements=st.booleans()))
def test_blobs_split_a_mask_into_disjoint_parts(mask: np.ndarray) -> None:
    parts = list(blobs(mask))
    together = np.sum(parts, axis=0) if parts else np.zeros_like(mask, dtype=int)
    assert np.array_equal(together, mask.astype(int))
    sizes = [int(p.sum()) for p in parts]
    assert sizes == sorted(sizes, reverse=True)


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.uint8, (32, 32, 3)))
def test_any_image_gets_a_verdict(image: np.ndarray) -> None:
    assert len(judge(image).things) <= 4

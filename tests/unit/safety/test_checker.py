"""Safety scores, against diffusers' ``StableDiffusionSafetyChecker``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.support.engines import make
from tests.support.tiny.safety import SIDE, write_checker
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from latentfarm.edit_fields import Safety
from latentfarm.errors import JobError, ModelError
from latentfarm_worker.safety.checker import SafetyChecker
from latentfarm_worker.safety.gate import SafetyGate, find_checker

pytestmark = pytest.mark.unit


def images(count: int, *, seed: int = 0) -> list[torch.Tensor]:
    """Return images of different sizes, of large squares of random colours, uint8 (H, W, 3)."""
    source = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        height, width = source.integers(2, 9, 2)
        squares = source.integers(0, 256, (height, width, 3), dtype=np.uint8)
        found.append(torch.from_numpy(squares.repeat(12, 0).repeat(12, 1)))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with a checker whose thresholds are in the middle of what these images have."""
    return write_checker(tmp_path_factory.mktemp("checker"), images(24))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker", local_files_only=True).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor", local_files_only=True)


def inputs_of(processor: Any, image: torch.Tensor) -> torch.Tensor:
    pixels: torch.Tensor = processor(Image.fromarray(image.numpy()), return_tensors="pt").pixel_values
    return pixels


def by_diffusers(reference: Any, processor: Any, image: torch.Tensor) -> bool:
    """Return diffusers' flag; its image is black if it is set."""
    made, [flagged] = reference(inputs_of(processor, image), [image.numpy().astype(float)])
    assert flagged == (not made[0].any())
    return bool(flagged)


def scores_by_diffusers(reference: Any, processor: Any, image: torch.Tensor) -> tuple[list[float], list[float]]:
    """Return the scores of concepts and of special care that its ``forward`` computes and does not return."""
    with torch.no_grad():
        embeds = reference.visual_projection(reference.vision_model(inputs_of(processor, image))[1])
        special = cosine_distance(embeds, reference.special_care_embeds).numpy()[0]
        concepts = cosine_distance(embeds, reference.concept_embeds).numpy()[0]
    adjustment, of_special = 0.0, []
    for cosine, threshold in zip(special, reference.special_care_embeds_weights, strict=True):
        of_special.append(round(cosine - threshold.item() + adjustment, 3))
        adjustment = 0.01 if of_special[-1] > 0 else adjustment
    thresholds = reference.concept_embeds_weights
    return (
        [round(c - t.item() + adjustment, 3) for c, t in zip(concepts, thresholds, strict=True)],
        of_special,
    )


def test_flags_and_scores_are_diffusers(folder: Path, reference: Any, processor: Any) -> None:
    checker = SafetyChecker.load(folder / "safety_checker")
    flags, special = [], []
    for image in images(24) + images(12, seed=1):
        scores = checker.scores(image)
        wanted = scores_by_diffusers(reference, processor, image)
        for found, expected in zip(scores, wanted, strict=True):
            assert found == pytest.approx([float(score) for score in expected], abs=1e-6)
        assert bool(scores.found) == by_diffusers(reference, processor, image)
        flags.append(bool(scores.found))
        special.append(any(score > 0 for score in scores.special_care))
    # both are common, so that the test can fail
    assert 5 < sum(flags) < 31
    assert 5 < sum(special) < 31


def test_the_input_is_that_of_clips_image_processor(folder: Path, processor: Any) -> None:
    preprocessing = SafetyChecker.load(folder / "safety_checker")._preprocessing
    for image in images(8):
        found, wanted = preprocessing.run(image), inputs_of(processor, image)
        assert found.shape == (1, 3, SIDE, SIDE)
        assert torch.allclose(found, wanted, atol=1e-6)


def test_a_checker_saved_by_an_older_release_has_the_same_scores(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(folder / "safety_checker", old)
    tensors = load_file(old / "model.safetensors")
    renamed = {name.replace("vision_model.", "vision_model.vision_model.", 1): each for name, each in tensors.items()}
    assert renamed.keys() != tensors.keys()
    ids = {"vision_model.vision_model.embeddings.position_ids": torch.arange(5)[None]}
    save_file({**renamed, **ids}, old / "model.safetensors")
    shutil.copy(folder / "feature_extractor" / "preprocessor_config.json", old)
    [image] = images(1)
    assert SafetyChecker.load(old).scores(image) == SafetyChecker.load(folder / "safety_checker").scores(image)


def test_images_are_not_touched_and_scores_are_json(folder: Path) -> None:
    [image] = images(1)
    before = image.clone()
    receipt = SafetyChecker.load(folder / "safety_checker").scores(image).as_receipt()
    assert torch.equal(image, before)
    assert [*receipt["concepts"]] == [str(number) for number in range(17)]
    assert [*receipt["special_care"]] == ["0", "1", "2"]
    assert receipt["flagged"] == any(score > 0 for score in receipt["concepts"].values())


@pytest.mark.parametrize(
    ("wanted", "minimum", "mode"),
    [
        ("off", "off", "off"),
        ("score", "off", "score"),
        ("off", "score", "score"),
        ("refuse", "score", "refuse"),
        ("score", "refuse", "refuse"),
    ],
)
def test_the_operator_sets_the_least(wanted: Safety, minimum: Safety, mode: Safety) -> None:
    assert SafetyGate(minimum=minimum).mode_of(make(0, safety=wanted)) == mode


def test_a_flagged_image_is_scored_or_refused(folder: Path) -> None:
    gate = SafetyGate(folder / "safety_checker")
    assert gate.check(make(0), images(1)[0]) == {}
    by_flag: dict[bool, torch.Tensor] = {}
    for image in images(24):
        by_flag[gate.check(make(0, safety="score"), image)["safety"]["flagged"]] = image
    assert gate.check(make(0, safety="refuse"), by_flag[False])["safety"]["flagged"] is False
    with pytest.raises(JobError, match=r"finds the concepts [\d, ]+ in the image, which is not stored") as raised:
        gate.check(make(0, safety="refuse"), by_flag[True])
    assert raised.value.code == "unsafe"


def test_without_a_checker_a_job_that_wants_one_fails() -> None:
    gate = SafetyGate()
    gate.require(make(0))
    with pytest.raises(JobError, match="set LATENTFARM_SAFETY_CHECKER") as raised:
        gate.require(make(0, safety="score"))
    assert raised.value.code == "safety_unavailable"


def test_a_checker_is_the_models_own_or_a_named_one(folder: Path, tmp_path: Path) -> None:
    assert find_checker("", str(folder)) == folder / "safety_checker"
    assert find_checker("", f"{folder},variant=fp16") == folder / "safety_checker"
    assert find_checker("", str(tmp_path)) is None
    assert find_checker("", "CompVis/stable-diffusion-v1-4") is None
    assert find_checker(str(folder), str(tmp_path)) == folder / "safety_checker"
    assert find_checker(str(folder / "safety_checker"), str(tmp_path)) == folder / "safety_checker"
    with pytest.raises(ModelError, match=r"there is no .*config\.json"):
        find_checker(str(tmp_path), "")


def test_a_damaged_checker_is_an_error_with_a_cure(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder / "safety_checker", broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["concept_embeds_weights"]
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(ModelError, match=r"KeyError: 'concept_embeds_weights'\); use one saved by diffusers"):
        SafetyChecker.load(broken)
    with pytest.raises(JobError, match="is not a safety checker") as raised:
        SafetyGate(broken).check(make(0, safety="score"), images(1)[0])
    assert raised.value.code == "safety_unavailable"

"""The steps and guidance that jobs without any get, by model."""

from __future__ import annotations

from typing import Any

import pytest

from latentfarm_worker.models.recommended import Recommended, recommend

TRAILING = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
SD35_MEDIUM = {"num_layers": 24, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13))}
SD35_LARGE = {"num_layers": 38, "qk_norm": "rms_norm", "dual_attention_layers": []}

CASES: list[tuple[str, str, dict[str, Any], Recommended]] = [
    ("StableDiffusionPipeline", "stable-diffusion-v1-4", {}, Recommended(25, 7.5)),
    ("StableDiffusionPipeline", "sd-turbo", {"scheduler": TRAILING}, Recommended(1, 0.0)),
    ("StableDiffusionPipeline", "terminus", {"scheduler": TRAILING}, Recommended(25, 7.5)),
    ("StableDiffusionPipeline", "lcm", {"denoiser": {"time_cond_proj_dim": 256}}, Recommended(4, 8.5)),
    ("StableDiffusionXLPipeline", "stable-diffusion-xl-base-1.0", {}, Recommended(25, 7.5)),
    ("StableDiffusionXLPipeline", "sdxl-turbo", {"scheduler": TRAILING}, Recommended(1, 0.0)),
    ("StableDiffusionXLPipeline", "a-merge-xl-turbo", {}, Recommended(25, 7.5)),
    ("StableDiffusion3Pipeline", "sd3-medium", {"denoiser": {"num_layers": 24}}, Recommended(28, 7.0)),
    ("StableDiffusion3Pipeline", "stable-diffusion-3.5-medium", {"denoiser": SD35_MEDIUM}, Recommended(40, 4.5)),
    ("StableDiffusion3Pipeline", "stable-diffusion-3.5-large", {"denoiser": SD35_LARGE}, Recommended(28, 3.5)),
    ("StableDiffusion3Pipeline", "sd3.5_large_turbo.safetensors", {"denoiser": SD35_LARGE}, Recommended(4, 0.0)),
    ("FluxPipeline", "FLUX.1-dev", {"denoiser": {"guidance_embeds": True, "in_channels": 64}}, Recommended(28, 3.5)),
    ("FluxPipeline", "FLUX.1-schnell", {"denoiser": {"guidance_embeds": False}}, Recommended(4, 0.0)),
    ("FluxPipeline", "mini-flow", {"denoiser": {"guidance_embeds": False, "in_channels": 16}}, Recommended(8, 3.0)),
    ("Flux2KleinPipeline", "FLUX.2-klein-4B", {"index": {"is_distilled": True}}, Recommended(4, 1.0)),
    ("Flux2KleinPipeline", "FLUX.2-klein-base-4B", {"index": {"is_distilled": False}}, Recommended(50, 4.0)),
    ("ZImagePipeline", "Tongyi-MAI/Z-Image-Turbo", {}, Recommended(8, 0.0)),
    ("ZImagePipeline", "Tongyi-MAI/Z-Image", {}, Recommended(50, 5.0)),
    ("ChromaPipeline", "Chroma1-HD", {}, Recommended(35, 5.0)),
    ("AnotherPipeline", "another", {}, Recommended(25, 7.5)),
]


@pytest.mark.parametrize(("pipeline", "name", "configs", "wanted"), CASES, ids=[case[1] for case in CASES])
def test_a_model_has_the_defaults_of_its_kind(
    pipeline: str, name: str, configs: dict[str, Any], wanted: Recommended
) -> None:
    given: dict[str, Any] = {"index": {}, "denoiser": {}, "scheduler": {}, **configs}

    assert recommend(pipeline, **given, name=name) == wanted


def test_a_turbo_model_is_known_by_the_name_that_it_was_saved_from() -> None:
    index = {"_name_or_path": "stabilityai/stable-diffusion-3.5-large-turbo"}

    found = recommend("StableDiffusion3Pipeline", index=index, denoiser=SD35_LARGE, scheduler={}, name="/models/fast")

    assert found == Recommended(4, 0.0)


def test_a_folder_above_the_model_does_not_make_it_turbo() -> None:
    found = recommend("ZImagePipeline", index={}, denoiser={}, scheduler={}, name="/turbo/models/z-image")

    assert found == Recommended(50, 5.0)


def test_a_turbo_model_as_the_base_of_a_file_does_not_make_it_turbo() -> None:
    source = "/models/sd3.5_large.safetensors,base=stabilityai/stable-diffusion-3.5-large-turbo"

    found = recommend("StableDiffusion3Pipeline", index={}, denoiser=SD35_LARGE, scheduler={}, name=source)

    assert found == Recommended(28, 3.5)

"""The shipped mini-flow: complete, small, loadable, and its images match their prompts."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from tests.support.pipelines import config_of, differences, open_pipeline
from transformers import CLIPTextModel, T5EncoderModel

from latentfarm.job import Job
from latentfarm.names import BUNDLED_MODELS
from latentfarm_worker.mini import BUNDLED, FLOW_DIR, MODEL_DIR, locate
from latentfarm_worker.models import load_family
from mini_training import measure, vae_stage, world
from mini_training.export import folder_bytes
from mini_training.flow_export import MOST_BYTES
from mini_training.judge import judge

pytestmark = pytest.mark.unit

FILES = sorted(p for p in FLOW_DIR.rglob("*") if p.is_file())


@cache
def _pipe() -> FluxPipeline:
    return measure.load_flow_pipeline()


def test_the_folder_is_small_and_holds_only_safetensors() -> None:
    assert folder_bytes(FLOW_DIR) <= MOST_BYTES
    assert {p.suffix for p in FILES} == {".json", ".txt", ".safetensors"}
    assert len([p for p in FILES if p.suffix == ".safetensors"]) == 4


def test_weights_are_stored_in_half_precision() -> None:
    for path in (p for p in FILES if p.suffix == ".safetensors"):
        head = path.read_bytes()
        length = int.from_bytes(head[:8], "little")
        entries = json.loads(head[8 : 8 + length])
        assert {v["dtype"] for k, v in entries.items() if k != "__metadata__"} <= {"F16", "I64"}


def test_no_config_names_a_path_of_the_machine_that_wrote_it() -> None:
    for path in (p for p in FILES if p.suffix == ".json"):
        assert not re.search(r'"/(tmp|work|home|root)', path.read_text(encoding="utf-8"))


def test_autoencoder_and_clip_encoder_are_minis() -> None:
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        name = f"{part}.safetensors"
        assert (FLOW_DIR / name).read_bytes() == (MODEL_DIR / name).read_bytes()
    for path in (MODEL_DIR / "tokenizer").iterdir():
        assert (FLOW_DIR / "tokenizer" / path.name).read_bytes() == path.read_bytes()


def test_it_loads_as_flux_in_float32() -> None:
    pipe = _pipe()
    assert isinstance(pipe.text_encoder, CLIPTextModel)
    assert isinstance(pipe.text_encoder_2, T5EncoderModel)
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    assert {part.dtype for part in parts} == {torch.float32}
    assert pipe.transformer.config.guidance_embeds is False
    assert pipe.transformer.config.in_channels == 4 * pipe.vae.config.latent_channels == 16
    assert pipe.tokenizer_2.model_max_length == 32


def test_noise_levels_shift_with_the_size_of_an_image() -> None:
    scheduler = _pipe().scheduler
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    assert scheduler.config.use_dynamic_shifting is True
    assert scheduler.config.base_image_seq_len == (world.NATIVE // 16) ** 2
    assert scheduler.config.base_shift < scheduler.config.max_shift


def test_latents_have_mean_zero_and_unit_spread_after_shift_and_scaling() -> None:
    rng = np.random.default_rng(1)
    vae = _pipe().vae
    drawn = vae_stage.to_tensor([world.draw(world.training_scene(rng)) for _ in range(24)])
    with torch.no_grad():
        latents = (vae.encode(drawn).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    assert float(latents.mean()) == pytest.approx(0, abs=0.15)
    assert float(latents.std()) == pytest.approx(1, abs=0.15)


def test_a_red_circle_is_red_and_round_in_english_in_capitals_and_in_thai() -> None:
    prompts = [
        "a large red circle on a white background",
        "A LARGE RED CIRCLE ON A WHITE BACKGROUND",
        "วงกลมสีแดงใหญ่ พื้นหลังสีขาว",
    ]
    for found in (judge(image) for image in measure.draw_prompts(_pipe(), prompts).images):
        assert (found.background, found.thing.colour, found.thing.shape) == ("white", "red", "circle")


def test_capital_letters_change_nothing() -> None:
    lower, upper = (measure.draw_prompts(_pipe(), [p], steps=2).images for p in ("a red circle", "A RED CIRCLE"))
    assert np.array_equal(lower, upper)


def test_the_worker_renders_the_pipelines_images() -> None:
    family = load_family(FLOW_DIR, dtype=torch.float32, device=torch.device("cpu"))
    assert (family.native_width, family.native_height) == (world.NATIVE, world.NATIVE)
    pipe = open_pipeline(FLOW_DIR)
    fields = {"width": 128, "height": 128, "num_inference_steps": 6, "guidance_scale": 4.0}
    prompts = ("a large red circle on a white background", "a blue star", "วงกลมสีแดงใหญ่ พื้นหลังสีขาว")
    jobs = [Job(batch="b", index=i, prompt=prompt, seed=i, **fields) for i, prompt in enumerate(prompts)]
    assert max(differences(family, pipe, config_of(pipe), jobs).values()) <= 1


def test_bundled_models_have_the_same_names_on_both_sides_and_a_folder() -> None:
    assert tuple(BUNDLED) == BUNDLED_MODELS
    for folder in BUNDLED.values():
        assert (folder / "model_index.json").is_file()


def test_a_source_or_an_alias_names_a_bundled_model(tmp_path: Path) -> None:
    assert locate("mini") == locate("") == locate("", alias="sd") == MODEL_DIR
    assert locate("mini-flow") == locate("mini-flow", alias="sd") == locate("", alias="mini-flow") == FLOW_DIR
    assert locate(tmp_path, alias="mini-flow") == tmp_path
    assert locate("org/model") == "org/model"

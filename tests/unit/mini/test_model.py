"""The shipped model: complete, small, loadable, and its images match their prompts."""

import json
import re
import subprocess
import sys
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from latentfarm_worker.mini import MODEL_DIR
from mini_training import captions, measure, vae_stage, world
from mini_training.export import MOST_BYTES, folder_bytes
from mini_training.judge import judge

pytestmark = [
    pytest.mark.unit,
    # diffusers' DPM-Solver passes a tensor to np.array, which NumPy 2 deprecates
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SCHEDULERS = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverSinglestepScheduler",
)

FILES = sorted(p for p in MODEL_DIR.rglob("*") if p.is_file())


@cache
def _pipe() -> StableDiffusionPipeline:
    return measure.load_pipeline()


def test_the_folder_is_small_and_holds_only_safetensors() -> None:
    assert folder_bytes(MODEL_DIR) <= MOST_BYTES
    assert {p.suffix for p in FILES} == {".json", ".txt", ".safetensors"}
    assert len([p for p in FILES if p.suffix == ".safetensors"]) == 3


def test_weights_are_stored_in_half_precision() -> None:
    for path in (p for p in FILES if p.suffix == ".safetensors"):
        head = path.read_bytes()
        length = int.from_bytes(head[:8], "little")
        entries = json.loads(head[8 : 8 + length])
        kinds = {v["dtype"] for k, v in entries.items() if k != "__metadata__"}
        assert kinds <= {"F16", "I64"}


def test_no_config_names_a_path_of_the_machine_that_wrote_it() -> None:
    for path in (p for p in FILES if p.suffix == ".json"):
        assert not re.search(r'"/(tmp|work|home|root)', path.read_text(encoding="utf-8"))


def test_it_loads_as_stable_diffusion_in_float32() -> None:
    pipe = _pipe()
    assert isinstance(pipe.tokenizer, CLIPTokenizer)
    assert isinstance(pipe.text_encoder, CLIPTextModel)
    assert {m.dtype for m in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    assert pipe.vae_scale_factor == 8
    assert pipe.unet.config.sample_size == 16
    assert pipe.vae.config.latent_channels == 4
    assert pipe.tokenizer.model_max_length == 77
    assert pipe.text_encoder.config.max_position_embeddings == 77
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"


def test_the_config_keeps_other_schedulers_from_clipping_latents() -> None:
    scheduler = diffusers.DDIMScheduler.from_config(_pipe().scheduler.config)
    assert scheduler.config.clip_sample is False
    assert scheduler.config.set_alpha_to_one is False


def test_the_tokenizer_knows_every_english_concept_as_one_token() -> None:
    tables = (captions.COLOUR_WORDS, captions.SHAPE_WORDS, captions.SIZE_WORDS)
    for word in (w for table in tables for ws in table.values() for w in ws):
        assert len(_pipe().tokenizer(word).input_ids) == 3, word


def test_latents_have_unit_spread_after_scaling() -> None:
    rng = np.random.default_rng(1)
    drawn = vae_stage.to_tensor([world.draw(world.training_scene(rng)) for _ in range(24)])
    with torch.no_grad():
        latents = _pipe().vae.encode(drawn).latent_dist.mean * _pipe().vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=0.15)


def test_the_autoencoder_reconstructs_images() -> None:
    scenes = measure.scenes_of(measure.held_out_combinations(12, seed=4))
    assert np.mean(measure.reconstruction_psnr(_pipe().vae, [world.draw(s) for s in scenes])) >= 28


def test_a_red_circle_is_red_and_round() -> None:
    prompts = ["a red circle on a white background", "a large blue square on a yellow background"]
    first, second = (judge(p) for p in measure.draw_prompts(_pipe(), prompts).images)
    assert (first.background, first.thing.colour, first.thing.shape) == ("white", "red", "circle")
    assert (second.background, second.thing.colour, second.thing.shape) == ("yellow", "blue", "square")


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, latentfarm_worker.mini; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.bench
@pytest.mark.parametrize("name", SCHEDULERS)
def test_images_of_every_scheduler_match_their_prompts(name: str) -> None:
    pipe = measure.load_pipeline()
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    wanted = measure.held_out_combinations(20, seed=6)
    drawn = measure.draw_prompts(pipe, measure.full_captions(wanted))
    right = measure.shares(drawn.images, wanted, measure.check_single)
    assert right["background"] >= 0.9
    assert right["colour"] >= 0.9
    assert right["shape"] >= 0.7

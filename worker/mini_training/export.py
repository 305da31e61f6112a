"""Write the trained networks as a diffusers folder: fp16 safetensors, loaded like SD 1."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from mini_training.loop import Stage
from mini_training.unet_stage import BETA_END, BETA_START, NOISE_STEPS

MOST_BYTES = 12_000_000


def scheduler() -> DPMSolverMultistepScheduler:
    """Return the default sampler: DPM-Solver++ of second order, on Stable Diffusion 1's noise schedule."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=NOISE_STEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="linspace",
        steps_offset=1,
    )


def pipeline(
    vae: AutoencoderKL,
    text: CLIPTextModel,
    unet: UNet2DConditionModel,
    tokenizer: CLIPTokenizer,
    scaling: float,
) -> StableDiffusionPipeline:
    """Return the pipeline of these parts, in float32."""
    vae.register_to_config(scaling_factor=scaling)
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(pipe: StableDiffusionPipeline, tokenizer_folder: Path, where: Path) -> int:
    """Replace the folder and return its size in bytes."""
    if where.exists():
        shutil.rmtree(where)
    halved = copy.deepcopy(pipe).to(torch.float16)
    halved.save_pretrained(where, safe_serialization=True)
    _for_other_schedulers(where / "scheduler" / "scheduler_config.json")
    # CLIP's own pair of tokenizer files is written; the library would write its own format.
    shutil.rmtree(where / "tokenizer")
    shutil.copytree(tokenizer_folder, where / "tokenizer")
    for config in where.glob("*/config.json"):
        tidy(config)
    return folder_bytes(where)


def _for_other_schedulers(path: Path) -> None:
    """Add the entries of SD 1's config for other schedulers.

    Without it DDIM would clip latents to [-1, 1] as if they were pixels.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    values.update(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def tidy(path: Path) -> None:
    """Remove local paths from a config, and set its dtype to float32."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("_name_or_path", None)
    if "dtype" in values:
        # Without it, transformers computes in the stored fp16, which is slow or missing on CPUs.
        values["dtype"] = "float32"
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def averaged(stage: Stage, name: str) -> torch.nn.Module:
    """Return a copy of one network of a stage, with its averaged weights."""
    return copy.deepcopy(stage.averages[name])


def folder_bytes(where: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(p.stat().st_size for p in where.rglob("*") if p.is_file())

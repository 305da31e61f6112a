"""Stable diffusion 1.x and 2.x: CLIP text encoder, conditional U-Net, KL autoencoder (arXiv 2112.10752).

Everything diffusers' StableDiffusionPipeline loads, without its safety checker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from latentfarm.errors import ModelError
from latentfarm.job import PromptSyntax
from latentfarm_worker.families.files import read_json, weights_digest
from latentfarm_worker.text import ClipEncoder, Prompt, Tensors, Tokens, tokens_of

_PARTS = ("text_encoder", "unet", "vae")
#: chunks of 77 tokens in one call of a text encoder: a GPU has room for many, a CPU none to fill up
_ENCODER_ROWS = {"cuda": 8}


class StableDiffusion:
    """One model of the family; see ``families.base.Family`` for the three verbs."""

    def __init__(self, parts: Mapping[str, Any], *, name: str, model_digest: str, dtype: torch.dtype) -> None:
        self.unet, self.vae = parts["unet"], parts["vae"]
        self.name = name
        self.model_digest = model_digest
        self.dtype = dtype
        self.vae_dtype: torch.dtype = self.vae.dtype
        self.device = torch.device(self.unet.device)
        rows = _ENCODER_ROWS.get(self.device.type, 1)
        self.text_encoder = ClipEncoder(parts["tokenizer"], parts["text_encoder"], rows=rows)
        self.max_clip_skip = self.text_encoder.layers - 1
        self.latent_channels: int = self.unet.config.in_channels
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.native_width, self.native_height = width * self.vae_scale_factor, height * self.vae_scale_factor
        self.scheduler_config: dict[str, Any] = parts["scheduler_config"]
        self.compiled = False
        self._compiled: Any = None
        #: rows, latents' height and width, tokens
        self._compiled_for: tuple[int, ...] = ()

    @classmethod
    def load(cls, folder: Path, *, name: str, dtype: torch.dtype, device: torch.device) -> StableDiffusion:
        """Load a diffusers folder.

        Raises:
            ModelError: weights that are no safetensors, or a U-Net with other inputs than ours.

        """
        digest = weights_digest(folder, _PARTS)
        _check_unet(folder / "unet" / "config.json")
        try:
            parts = _load_parts(folder, dtype, device)
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            raise ModelError(
                f"{folder}: cannot be loaded as {dtype} on {device}: {error}; check that the folder is "
                "complete and opens with StableDiffusionPipeline.from_pretrained"
            ) from error
        return cls(parts, name=name, model_digest=digest, dtype=dtype)

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> Tokens:
        """Return a prompt's tokens, as ``text.tokens_of``."""
        return tokens_of(self.text_encoder, prompt, syntax)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return ``states`` (77 x chunks, D) of each prompt."""
        return [{"states": states} for states in self.text_encoder.encode(prompts)]

    def size_tensors(self, width: int, height: int) -> Tensors:
        """Return nothing: these models see a picture's size by its latents."""
        del width, height
        return {}

    def compile(self, rows: int) -> None:
        """Compile the U-Net; what Inductor makes is kept on disk, so the next worker's start is shorter."""
        factor = self.vae_scale_factor
        self.compiled = True
        self._compiled = torch.compile(self.unet, dynamic=False)
        self._compiled_for = (rows, self.native_height // factor, self.native_width // factor, self.text_encoder.length)

    @torch.inference_mode()
    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, told: Tensors) -> torch.Tensor:
        """Return the U-Net's output, float32 (R, C, h, w)."""
        states = told["states"]
        fixed = (latents.shape[0], latents.shape[2], latents.shape[3], states.shape[1]) == self._compiled_for
        unet = self._compiled if fixed else self.unet
        sample = latents.to(self.dtype, memory_format=torch.channels_last)
        output = unet(sample, timesteps, encoder_hidden_states=states, return_dict=False)[0]
        return output.float()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def decode(
        self, latents: torch.Tensor, *, float32: bool = False, tiled: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pictures, uint8 (N, H, W, 3), decoded in the VAE's own dtype or in float32."""
        if float32:
            self.vae.to(torch.float32)
        self.vae.use_tiling = tiled
        try:
            images = self._decode(latents)
        finally:
            self.vae.use_tiling = False
            if float32:
                self.vae.to(self.vae_dtype)  # exact: the weights came from this dtype
        finite = torch.isfinite(images).flatten(1).all(dim=1)
        images = (images / 2 + 0.5).nan_to_num(0.0).clamp(0, 1)
        return (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8), finite

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        scaled = latents.to(self.vae.dtype, memory_format=torch.channels_last) / self.vae.config.scaling_factor
        images: torch.Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return images.float()


def _load_parts(folder: Path, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    # stderr is for whoever started the worker, not for a bar that fills in no time
    logging.disable_progress_bar()
    local = {"use_safetensors": True, "local_files_only": True}
    # the other way needs accelerate, and a line on stderr says so
    own = {**local, "low_cpu_mem_usage": False}
    unet = UNet2DConditionModel.from_pretrained(
        folder, subfolder="unet", torch_dtype=dtype, low_cpu_mem_usage=False, **local
    )
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype, **own)
    if vae.config.force_upcast and dtype == torch.float16:
        vae = AutoencoderKL.from_pretrained(
            folder, subfolder="vae", torch_dtype=torch.float32, low_cpu_mem_usage=False, **local
        )
    encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype, **local)
    models = {"unet": unet, "vae": vae, "text_encoder": encoder}
    for model in models.values():
        model.eval().requires_grad_(requires_grad=False).to(device)
    # convolutions read their channels side by side, and queries, keys and values are one product each
    unet.to(memory_format=torch.channels_last).fuse_qkv_projections()
    vae.to(memory_format=torch.channels_last)
    return {
        **models,
        "tokenizer": CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True),
        "scheduler_config": _scheduler_config(folder),
    }


def _scheduler_config(folder: Path) -> dict[str, Any]:
    """Return the scheduler's config, corrected where StableDiffusionPipeline corrects old models."""
    import diffusers

    config = read_json(folder / "scheduler" / "scheduler_config.json")
    cls = getattr(diffusers, str(config.get("_class_name")), None)
    if cls is None:
        raise ModelError(f"{folder / 'scheduler'}: diffusers has no scheduler {config.get('_class_name')!r}")
    filled = dict(cls.from_config(config).config)
    if "steps_offset" in filled:
        filled["steps_offset"] = 1
    filled["clip_sample"] = False
    return {**filled, "_class_name": cls.__name__}


def _check_unet(path: Path) -> None:
    config = read_json(path)
    for key, wanted in (
        ("time_cond_proj_dim", None),
        ("addition_embed_type", None),
        ("class_embed_type", None),
    ):
        if config.get(key) != wanted:
            raise ModelError(
                f"{path}: {key} is {config[key]!r}; the U-Net may need sample, timestep and text only: use a "
                "plain stable diffusion 1.x or 2.x model"
            )
    if config.get("in_channels", 4) != config.get("out_channels", 4):
        raise ModelError(
            f"{path}: in_channels is {config['in_channels']}, out_channels {config['out_channels']}: this is "
            "no text-to-image model (inpainting takes 9); use the base model"
        )

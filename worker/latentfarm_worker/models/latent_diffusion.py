"""Latent diffusion (arXiv 2112.10752) as diffusers implements it: CLIP text encoders, U-Net, KL autoencoder.

The common base of the Stable Diffusion families; each overrides its differences in its own module.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch._dynamo.decorators import maybe_mark_dynamic

from latentfarm.errors import ModelError
from latentfarm.job import PromptSyntax
from latentfarm_worker.models.checkpoint import read_json, weights_digest
from latentfarm_worker.models.compiled_blocks import compile_blocks, uncompile_blocks, uncompiled
from latentfarm_worker.models.digest_cache import DigestCache
from latentfarm_worker.models.quantization import quantize_to_fp8
from latentfarm_worker.models.text_encoder import (
    ClipEncoder,
    Prompt,
    Tensors,
    TextEmbedding,
    TokenizedPrompt,
    tokenize,
)

#: chunks of 77 tokens in one forward pass of a text encoder; padding up to it costs a GPU little, and a CPU much
_ENCODER_ROWS = {"cuda": 8}


class LatentDiffusion:
    """One model, as ``models.base.Family`` describes it.

    ``parts``: the modules and tokenizers by sub-folder, ``scheduler_config``, and ``model_index`` with the pipeline's
    own settings.
    """

    #: the diffusers pipeline that renders the same images
    pipeline: ClassVar[str]
    #: sub-folder -> transformers class; each has its own tokenizer, and their hidden states are concatenated
    encoders: ClassVar[Mapping[str, str]]
    #: the layer whose hidden states are read, counted from the end; None: the last, with the final layer norm
    text_layer: ClassVar[int | None] = None
    #: required entries of the U-Net's config, and the kind of model that has them, for error messages
    unet_config: ClassVar[Mapping[str, str | None]]
    plain_model: ClassVar[str]
    #: names of the conditioning tensors besides hidden states and guidance
    added: ClassVar[tuple[str, ...]] = ()
    #: whether a VAE that sets force_upcast runs in float32 where the model is float16
    upcast_vae: ClassVar[bool] = False

    def __init__(self, parts: Mapping[str, Any], *, name: str, model_digest: str, dtype: torch.dtype) -> None:
        self.unet, self.vae = parts["unet"], parts["vae"]
        self.name = name
        self.model_digest = model_digest
        self.dtype = dtype
        self.vae_dtype: torch.dtype = self.vae.dtype
        self.device = torch.device(self.unet.device)
        rows = _ENCODER_ROWS.get(self.device.type, 1)
        self.text_encoders = tuple(
            ClipEncoder(parts[_tokenizer_of(part)], parts[part], rows=rows, layer=self.text_layer)
            for part in self.encoders
        )
        self.max_clip_skip = min(encoder.max_clip_skip for encoder in self.text_encoders)
        self.latent_channels: int = self.unet.config.in_channels
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.native_width, self.native_height = width * self.vae_scale_factor, height * self.vae_scale_factor
        self.embeds_guidance = self.unet.config.time_cond_proj_dim is not None
        self.scheduler_config: dict[str, Any] = parts["scheduler_config"]
        self.compiled = False
        self.quantization = "none"

    @classmethod
    def load(cls, folder: Path, *, name: str, dtype: torch.dtype, device: torch.device, digests: DigestCache) -> Self:
        """Load a diffusers folder.

        Raises:
            ModelError: the weights are not safetensors, or the U-Net has unsupported inputs.

        """
        cls.check(folder)
        digest = weights_digest(folder, ("unet", "vae", *cls.encoders), digests)
        try:
            parts = cls._load_parts(folder, dtype, device)
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            raise ModelError(
                f"{folder}: cannot be loaded as {dtype} on {device}: {error}; check that the folder is "
                f"complete and opens with {cls.pipeline}.from_pretrained"
            ) from error
        return cls(parts, name=name, model_digest=digest, dtype=dtype)

    @classmethod
    def check(cls, folder: Path) -> None:
        """Check the config files for a U-Net with unsupported conditioning inputs.

        Raises:
            ModelError: it has one.

        """
        path = folder / "unet" / "config.json"
        config = read_json(path)
        for key, wanted in {**cls.unet_config, "class_embed_type": None, "encoder_hid_dim_type": None}.items():
            if config.get(key) != wanted:
                raise ModelError(f"{path}: {key} is {config.get(key)!r}, not {wanted!r}; use {cls.plain_model}")
        if config.get("in_channels", 4) != config.get("out_channels", 4):
            raise ModelError(
                f"{path}: in_channels is {config['in_channels']}, out_channels {config['out_channels']}: this is "
                "not a text-to-image model (inpainting has 9); use the base model"
            )

    # -- inference -------------------------------------------------------------------------------------------

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        """Return a prompt's tokens, as ``text_encoder.tokenize``."""
        return tokenize(self.text_encoders[0], prompt, syntax)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return the conditioning of each prompt.

        ``encoder_hidden_states`` (77 x chunks, D) and, if an encoder has a projection, ``text_embeds`` (P,).
        """
        encoded = zip(*(encoder.encode(prompts) for encoder in self.text_encoders), strict=True)
        return [_concatenate(texts) for texts in encoded]

    def row_conditioning(self, width: int, height: int, guidance_scale: float) -> Tensors:
        """Return ``timestep_cond``, the embedded scale of guidance-distilled U-Nets (LCM, arXiv 2310.04378), or none.

        As ``StableDiffusionPipeline.get_guidance_scale_embedding``. Most models know an image's size from its latents.
        """
        del width, height
        if not self.embeds_guidance:
            return {}
        from diffusers import StableDiffusionPipeline

        # sines of numbers in the thousands: only the same operations in the same order give the same bits
        embed: Any = StableDiffusionPipeline.get_guidance_scale_embedding
        scale = torch.tensor([guidance_scale - 1])
        embedded = embed(None, scale, embedding_dim=self.unet.config.time_cond_proj_dim)[0]
        return {"timestep_cond": embedded.to(self.dtype)}

    def compile(self) -> None:
        """Let the U-Net and the VAE's decoder be compiled at their first call with each number of rows."""
        compile_blocks(self.unet, self.vae.decoder)
        self.compiled = True

    def uncompile(self) -> None:
        """Run everything uncompiled."""
        uncompile_blocks(self.unet, self.vae.decoder)
        self.compiled = False

    def quantize_to_fp8(self) -> None:
        """Quantize the linear layers of the U-Net's transformers.

        Raises:
            ModelError: the dtype is not bfloat16, torchao is not installed, or the device has no FP8 units.

        """
        quantize_to_fp8(self.unet, self.dtype)
        self.quantization = "fp8"

    def _program(self, latents: torch.Tensor, *, eager: bool = False) -> AbstractContextManager[None]:
        """Return the context of a call: other sizes than the native one, or ``eager``, run uncompiled."""
        factor = self.vae_scale_factor
        native = latents.shape[-2] * factor == self.native_height and latents.shape[-1] * factor == self.native_width
        if self.compiled and (eager or not native):
            return uncompiled()
        return nullcontext()

    @torch.inference_mode()
    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the U-Net's output, float32 (R, C, h, w)."""
        hidden_states = conditioning["encoder_hidden_states"]
        if self.compiled:
            # one program for texts of any length
            maybe_mark_dynamic(hidden_states, 1)
        with self._program(latents):
            output = self.unet(
                latents.to(self.dtype, memory_format=torch.channels_last),
                timesteps,
                encoder_hidden_states=hidden_states,
                timestep_cond=conditioning.get("timestep_cond"),
                added_cond_kwargs={name: conditioning[name] for name in self.added},
                return_dict=False,
            )[0]
        return output.float()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def decode(
        self, latents: torch.Tensor, *, float32: bool = False, tiled: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images, uint8 (N, H, W, 3), and whether the VAE's output was finite, bool (N,)."""
        # torch's own method: that of diffusers warns at each call
        if float32:
            torch.nn.Module.to(self.vae, torch.float32)
        self.vae.use_tiling = tiled
        try:
            with self._program(latents, eager=float32 or tiled):
                images = self._decode(latents)
        finally:
            self.vae.use_tiling = False
            if float32:
                torch.nn.Module.to(self.vae, self.vae_dtype)  # exact: the weights came from this dtype
        finite = torch.isfinite(images).flatten(1).all(dim=1)
        images = (images / 2 + 0.5).nan_to_num(0.0).clamp(0, 1)
        return (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8), finite

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        scaled = self._unscaled(latents.to(self.vae.dtype, memory_format=torch.channels_last))
        images: torch.Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return images.float()

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents in the VAE's own scale."""
        return latents / float(self.vae.config.scaling_factor)

    # -- loading ---------------------------------------------------------------------------------------------

    @classmethod
    def _load_parts(cls, folder: Path, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        import transformers
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers.utils import logging

        # progress bars would fill the worker's log
        logging.disable_progress_bar()
        local = {"use_safetensors": True, "local_files_only": True}
        # the default needs the package accelerate, and warns on stderr without it
        own = {**local, "low_cpu_mem_usage": False}
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype, **own)
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype, **own)
        # the default of force_upcast is true, and only the XL pipelines of diffusers read it
        if cls.upcast_vae and vae.config.force_upcast and dtype == torch.float16:
            vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32, **own)
        models = {"unet": unet, "vae": vae}
        tokenizers = {}
        for part, kind in cls.encoders.items():
            models[part] = getattr(transformers, kind).from_pretrained(folder, subfolder=part, dtype=dtype, **local)
            tokenizers[_tokenizer_of(part)] = transformers.CLIPTokenizer.from_pretrained(
                folder, subfolder=_tokenizer_of(part), local_files_only=True
            )
        for model in models.values():
            model.eval().requires_grad_(requires_grad=False).to(device)
        # channels_last is faster for convolutions; fusing makes one product of queries, keys and values
        unet.to(memory_format=torch.channels_last).fuse_qkv_projections()
        vae.to(memory_format=torch.channels_last)
        return {
            **models,
            **tokenizers,
            "scheduler_config": cls._scheduler_config(folder),
            "model_index": read_json(folder / "model_index.json"),
        }

    @classmethod
    def _scheduler_config(cls, folder: Path) -> dict[str, Any]:
        """Return the scheduler's config, completed with its class's defaults."""
        import diffusers

        config = read_json(folder / "scheduler" / "scheduler_config.json")
        scheduler = getattr(diffusers, str(config.get("_class_name")), None)
        if scheduler is None:
            raise ModelError(f"{folder / 'scheduler'}: diffusers has no scheduler {config.get('_class_name')!r}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers deprecates its own internals; users cannot act on it
            return {**scheduler.from_config(config).config, "_class_name": scheduler.__name__}


def _tokenizer_of(part: str) -> str:
    return part.replace("text_encoder", "tokenizer")


def _concatenate(texts: Sequence[TextEmbedding]) -> Tensors:
    """Return the conditioning of one prompt from its embedding by each encoder."""
    projected = [text.projected for text in texts if text.projected is not None]
    hidden_states = torch.cat([text.hidden_states for text in texts], dim=-1)
    return {"encoder_hidden_states": hidden_states, **({"text_embeds": projected[-1]} if projected else {})}

"""Latent diffusion (arXiv 2112.10752) as diffusers implements it: CLIP text encoders, U-Net, KL autoencoder.

The common base of the Stable Diffusion families; each overrides its differences in its own module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch._dynamo.decorators import maybe_mark_dynamic

from latentfarm.errors import ModelError
from latentfarm.job import PromptSyntax
from latentfarm_worker.adapters.controlnet.part import ControlNets
from latentfarm_worker.adapters.controlnet.unet import UNetControlNets
from latentfarm_worker.checkpoints import Checkpoint
from latentfarm_worker.models.pipeline_model import PipelineModel
from latentfarm_worker.text_encoders.clip import ClipEncoder, TextEmbedding, tokenize
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt


class LatentDiffusion(PipelineModel):
    """A model with a U-Net. The hidden states of its text encoders are concatenated."""

    denoiser = ("unet", "UNet2DConditionModel")
    control_nets: ClassVar[type[ControlNets]] = UNetControlNets
    controlnets: UNetControlNets
    takes_image_prompts = True
    #: the layer whose hidden states are read, counted from the end; None: the last, with the final layer norm
    text_layer: ClassVar[int | None] = None
    #: required entries of the U-Net's config, and the kind of model that has them, for error messages
    unet_config: ClassVar[Mapping[str, str | None]]
    plain_model: ClassVar[str]
    #: channels that the U-Net reads besides those of the latents
    extra_channels: ClassVar[int] = 0
    #: names of the conditioning tensors besides hidden states and guidance
    added: ClassVar[tuple[str, ...]] = ()

    def __init__(self, parts: Mapping[str, Any], *, name: str, model_digest: str, dtype: torch.dtype) -> None:
        self.unet = parts["unet"]
        super().__init__(parts, name=name, model_digest=model_digest, dtype=dtype)
        self.text_encoders = tuple(
            ClipEncoder(parts[tokenizer], parts[part], rows=self.encoder_rows, layer=self.text_layer, number=number)
            for number, (part, tokenizer) in enumerate(zip(self.encoders, self.tokenizers, strict=True))
        )
        self.embedding_widths = tuple(encoder.model.config.hidden_size for encoder in self.text_encoders)
        self.max_clip_skip = min(encoder.max_clip_skip for encoder in self.text_encoders)
        self.embeds_guidance = self.unet.config.time_cond_proj_dim is not None
        self.latent_channels = self.unet.config.out_channels

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        """Check the config files for a U-Net with unsupported conditioning inputs.

        Raises:
            ModelError: it has one.
        """
        path, config = checkpoint.where("unet"), checkpoint.config("unet")
        for key, wanted in {**cls.unet_config, "class_embed_type": None, "encoder_hid_dim_type": None}.items():
            if config.get(key) != wanted:
                raise ModelError(f"{path}: {key} is {config.get(key)!r}, not {wanted!r}; use {cls.plain_model}")
        inputs, outputs = config.get("in_channels", 4), config.get("out_channels", 4)
        if inputs != outputs + cls.extra_channels:
            raise ModelError(
                f"{path}: in_channels is {inputs}, out_channels {outputs}: models of {cls.pipeline} have "
                f"{outputs + cls.extra_channels} input channels; use one, or correct the pipeline in model_index.json"
            )

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        """Return a prompt's tokens, as ``clip.tokenize``."""
        return tokenize(self.text_encoders[0], prompt, syntax, self.embeddings)

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

    @torch.inference_mode()
    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the U-Net's output, float32 (R, C, h, w)."""
        hidden_states = conditioning["encoder_hidden_states"]
        if self.compiled:
            # one program for texts of any length
            maybe_mark_dynamic(hidden_states, 1)
        sample = latents.to(self.dtype, memory_format=torch.channels_last)
        added = {name: conditioning[name] for name in self.added}
        with self._calling(latents, conditioning):
            output = self.unet(
                sample,
                timesteps,
                encoder_hidden_states=hidden_states,
                timestep_cond=conditioning.get("timestep_cond"),
                added_cond_kwargs=added,
                return_dict=False,
                **self.controlnets.residuals(conditioning, sample, timesteps, added),
            )[0]
        return output.float()  # type: ignore[no-any-return]

    def _native_size(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return width * self.vae_scale_factor, height * self.vae_scale_factor

    @classmethod
    def _arrange(cls, denoising_model: Any) -> None:
        # channels_last is faster for convolutions; fusing makes one product of queries, keys and values
        denoising_model.to(memory_format=torch.channels_last).fuse_qkv_projections()


def _concatenate(texts: Sequence[TextEmbedding]) -> Tensors:
    """Return the conditioning of one prompt from its embedding by each encoder."""
    projected = [text.projected for text in texts if text.projected is not None]
    hidden_states = torch.cat([text.hidden_states for text in texts], dim=-1)
    return {"encoder_hidden_states": hidden_states, **({"text_embeds": projected[-1]} if projected else {})}

"""Stable Diffusion 3 and 3.5: a flow-matching transformer (MMDiT), two CLIP encoders and T5 (arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from latentfarm.errors import JobError, ModelError
from latentfarm.job import PromptSyntax
from latentfarm_worker.adapters.controlnet.transformer import Sd3ControlNets
from latentfarm_worker.checkpoints import Checkpoint
from latentfarm_worker.models.pipeline_model import PipelineModel
from latentfarm_worker.noise_schedule import NoiseSchedule, shift_by_tokens
from latentfarm_worker.text_encoders.clip import ClipEncoder, TextEmbedding, require_one_vocabulary
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt
from latentfarm_worker.text_encoders.t5 import T5Encoder, tokenize

#: tokens of T5, the default of StableDiffusion3Pipeline
_TEXT_LENGTH = 256


class StableDiffusion3(PipelineModel):
    """A model conditioned on CLIP's penultimate hidden states, side by side, and below them on T5's.

    T5 may be left out: its hidden states are zeros then, as in the pipeline.
    """

    pipeline = "StableDiffusion3Pipeline"
    inputs: tuple[str, ...] = ("image", "mask_image")
    denoiser = ("transformer", "SD3Transformer2DModel")
    encoders: ClassVar = {
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    }
    tokenizers: ClassVar = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer", "tokenizer_3": "T5Tokenizer"}
    optional = frozenset({"text_encoder_3", "tokenizer_3"})
    patch_size = 2
    control_nets = Sd3ControlNets
    controlnets: Sd3ControlNets

    def __init__(self, parts: Mapping[str, Any], *, name: str, model_digest: str, dtype: torch.dtype) -> None:
        super().__init__(parts, name=name, model_digest=model_digest, dtype=dtype)
        self.clip = tuple(
            ClipEncoder(parts[tokenizer], parts[part], rows=self.encoder_rows, layer=-2)
            for part, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
        )
        self.t5: T5Encoder | None = None
        if "text_encoder_3" in self.encoder_parts:
            self.t5 = T5Encoder(parts["tokenizer_3"], parts["text_encoder_3"], longest=_TEXT_LENGTH)
            self.max_prompt_tokens = self.t5.length
        self.max_clip_skip = min(encoder.max_clip_skip for encoder in self.clip)
        require_one_vocabulary(self.clip, name)

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        """Check the configs for a transformer that is not text-to-image.

        Raises:
            ModelError: it is not.
        """
        config = checkpoint.config("transformer")
        channels = config.get("in_channels", 16), config.get("out_channels", 16)
        if channels[0] != channels[1]:
            raise ModelError(
                f"{checkpoint.where('transformer')}: in_channels is {channels[0]}, out_channels {channels[1]}: this is "
                "not a text-to-image model; use the base model"
            )

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        """Return a prompt's tokens, as ``t5.tokenize``."""
        return tokenize(self.clip[0], self.t5, prompt, syntax)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return ``encoder_hidden_states`` (77 + 256, D) and ``pooled_projections`` (P1 + P2,) of each prompt."""
        by_clip = zip(*(encoder.encode(prompts) for encoder in self.clip), strict=True)
        return [_join(texts, long) for texts, long in zip(by_clip, self._encode_by_t5(prompts), strict=True)]

    def _encode_by_t5(self, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        if self.t5 is not None:
            return self.t5.encode([prompt.tokens.ids for prompt in prompts])
        width = self.denoising_model.config.joint_attention_dim
        return [torch.zeros(_TEXT_LENGTH, width, dtype=self.dtype, device=self.encoder_placement.device)] * len(prompts)

    def row_conditioning(self, width: int, height: int, guidance_scale: float) -> Tensors:
        """Return no conditioning, but check the size: the model has a learned position for each token.

        Raises:
            JobError: code ``size_not_supported``: a side has more tokens than there are positions.
        """
        del guidance_scale
        longest = self.denoising_model.config.pos_embed_max_size * self.pixel_multiple
        if max(width, height) > longest:
            raise JobError(
                "size_not_supported",
                f"{width}x{height} is too large for this model; write sides of at most {longest} pixels",
            )
        return {}

    def noise_schedule(self, num_inference_steps: int, width: int, height: int) -> NoiseSchedule:
        """Return the scheduler's own noise levels, with the shift of an image's size if its config wants one."""
        del num_inference_steps
        return NoiseSchedule(mu=shift_by_tokens(self.scheduler_config, self._tokens(width, height)))

    @torch.inference_mode()
    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the transformer's velocity, float32 (R, C, h, w)."""
        sample = latents.to(self.dtype)
        with self._calling(latents, conditioning):
            output = self.denoising_model(
                hidden_states=sample,
                timestep=timesteps,
                encoder_hidden_states=conditioning["encoder_hidden_states"],
                pooled_projections=conditioning["pooled_projections"],
                return_dict=False,
                **self.controlnets.residuals(conditioning, sample, timesteps),
            )[0]
        return output.float()  # type: ignore[no-any-return]

    def _native_size(self) -> tuple[int, int]:
        side = self.denoising_model.config.sample_size * self.vae_scale_factor
        return side, side


def _join(texts: Sequence[TextEmbedding], long: torch.Tensor) -> Tensors:
    """Return the conditioning of one prompt from its embeddings by CLIP and its hidden states by T5."""
    short = torch.cat([text.hidden_states for text in texts], dim=-1)
    short = torch.nn.functional.pad(short, (0, long.shape[-1] - short.shape[-1]))
    pooled = [text.projected for text in texts if text.projected is not None]
    return {"encoder_hidden_states": torch.cat([short, long]), "pooled_projections": torch.cat(pooled)}

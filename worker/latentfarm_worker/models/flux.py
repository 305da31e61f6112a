"""FLUX.1 dev and schnell, and models like them: a flow-matching transformer on packed latents, CLIP and T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from latentfarm.errors import ModelError
from latentfarm.job import PromptSyntax
from latentfarm_worker.adapters.controlnet import ControlNets, NoControlNets
from latentfarm_worker.adapters.controlnet.transformer import FluxControlNets
from latentfarm_worker.checkpoints import Checkpoint
from latentfarm_worker.models.pipeline_model import PipelineModel
from latentfarm_worker.noise_schedule import NoiseSchedule, even_sigmas, shift_by_tokens
from latentfarm_worker.text_encoders.clip import ClipEncoder
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt
from latentfarm_worker.text_encoders.t5 import T5Encoder, tokenize

#: tokens of T5: FluxPipeline's default, and what schnell was trained with
_TEXT_LENGTH, _SCHNELL_TEXT_LENGTH = 512, 256


class Flux(PipelineModel):
    """A model conditioned on T5's hidden states and CLIP's pooled ones.

    With an embedded guidance scale (dev) an image has one row, and no negative prompt. Without one (schnell) the
    guidance scale is FluxPipeline's ``true_cfg_scale``, with a second row for the negative prompt if it is over 1.
    """

    pipeline = "FluxPipeline"
    inputs: tuple[str, ...] = ("image", "mask_image")
    denoiser = ("transformer", "FluxTransformer2DModel")
    encoders: ClassVar = {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"}
    tokenizers: ClassVar = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5Tokenizer"}
    patch_size = 2
    control_nets: ClassVar[type[ControlNets]] = FluxControlNets
    controlnets: FluxControlNets | NoControlNets

    def __init__(self, parts: Mapping[str, Any], *, name: str, model_digest: str, dtype: torch.dtype) -> None:
        super().__init__(parts, name=name, model_digest=model_digest, dtype=dtype)
        config = self.denoising_model.config
        self.embeds_guidance = bool(config.get("guidance_embeds"))
        self.latent_channels = config.in_channels // self.patch_size**2
        self._make_encoders(parts)
        self.max_prompt_tokens = self.t5.length

    def _make_encoders(self, parts: Mapping[str, Any]) -> None:
        self.clip = ClipEncoder(
            parts["tokenizer"], parts["text_encoder"], rows=self.encoder_rows, pooled="pooler_output"
        )
        longest = _TEXT_LENGTH if self.embeds_guidance else _SCHNELL_TEXT_LENGTH
        self.t5 = T5Encoder(parts["tokenizer_2"], parts["text_encoder_2"], longest=longest)

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        """Check the configs for a transformer that is not text-to-image.

        Raises:
            ModelError: it is not: those of fill, depth and canny have more input channels than output channels.
        """
        config = checkpoint.config("transformer")
        inputs = config.get("in_channels", 64)
        outputs = config.get("out_channels") or inputs
        latents = cls.patch_size**2 * checkpoint.config("vae").get("latent_channels", 4)
        if not inputs == outputs == latents:
            raise ModelError(
                f"{checkpoint.where('transformer')}: in_channels is {inputs}, out_channels {outputs}, and packed "
                f"latents have {latents}: this is not a text-to-image model; use the base model"
            )

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        """Return a prompt's tokens, as ``t5.tokenize``."""
        return tokenize(self.clip, self.t5, prompt, syntax)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return ``encoder_hidden_states`` (text length, D) and ``pooled_projections`` (P,) of each prompt."""
        pooled = [text.projected for text in self.clip.encode(prompts)]
        states = self.t5.encode([prompt.tokens.ids for prompt in prompts])
        return [
            # a copy: the row of a group would keep the whole group
            {"encoder_hidden_states": long, "pooled_projections": short.clone()}
            for long, short in zip(states, pooled, strict=True)
            if short is not None
        ]

    def row_conditioning(self, width: int, height: int, guidance_scale: float) -> Tensors:
        """Return ``guidance`` (), the scale in float32, if the model embeds it."""
        del width, height
        return {"guidance": torch.tensor(guidance_scale)} if self.embeds_guidance else {}

    def noise_schedule(self, num_inference_steps: int, width: int, height: int) -> NoiseSchedule:
        """Return even noise levels, and the shift of an image's size."""
        mu = shift_by_tokens(self.scheduler_config, self._tokens(width, height))
        return NoiseSchedule(even_sigmas(num_inference_steps), mu)

    @torch.inference_mode()
    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the transformer's velocity, float32 (R, C, h, w)."""
        height, width = (side // self.patch_size for side in latents.shape[-2:])
        states = conditioning["encoder_hidden_states"]
        inputs = {
            "hidden_states": pack(latents.to(self.dtype)),
            # in this dtype and order as the pipeline: half precision rounds the same
            "timestep": timesteps.to(self.dtype) / 1000,
            "encoder_hidden_states": states,
            "txt_ids": torch.zeros(states.shape[1], 3, dtype=self.dtype, device=self.device),
            "img_ids": _positions(height, width, self.device).to(self.dtype),
            **self._inputs(conditioning, tokens=height * width),
        }
        with self._calling(latents, conditioning):
            residuals = self.controlnets.residuals(conditioning, inputs)
            output = self.denoising_model(**inputs, **residuals, return_dict=False)[0]
        return unpack(output, height, width).float()

    def _inputs(self, conditioning: Tensors, *, tokens: int) -> dict[str, torch.Tensor | None]:
        """Return the transformer's inputs beside latents, timesteps and hidden states, for an image of ``tokens``."""
        del tokens
        return {"guidance": conditioning.get("guidance"), "pooled_projections": conditioning["pooled_projections"]}


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Return latents (R, C, h, w) as tokens (R, h/2 * w/2, 4 C), each of them 2x2 latent pixels."""
    rows, channels, height, width = latents.shape
    patches = latents.reshape(rows, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(rows, (height // 2) * (width // 2), 4 * channels)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return tokens (R, height * width, 4 C) as latents (R, C, 2 height, 2 width), the reverse of ``pack``."""
    rows, _, channels = tokens.shape
    patches = tokens.reshape(rows, height, width, channels // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(rows, channels // 4, 2 * height, 2 * width)


def _positions(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return the position of each token, (height * width, 3): 0, row and column. It is made on the device."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    grid = torch.stack([rows[:, None].expand(height, width), columns[None].expand(height, width)], dim=-1)
    return torch.nn.functional.pad(grid.reshape(-1, 2), (1, 0))

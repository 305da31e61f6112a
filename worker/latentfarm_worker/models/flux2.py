"""FLUX.2 klein, base and distilled: Qwen3's hidden states of three layers, and a VAE whose latents are packed.

It loads all models of diffusers' Flux2KleinPipeline, and edits no images. The engine keeps the packed latents, with
128 channels for 2 x 2 latent pixels of the VAE, because the pipeline draws its noise in their shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from latentfarm.errors import ModelError
from latentfarm.job import PromptSyntax
from latentfarm_worker.checkpoints import Checkpoint
from latentfarm_worker.models.pipeline_model import PipelineModel
from latentfarm_worker.noise_schedule import NoiseSchedule, even_sigmas
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt
from latentfarm_worker.text_encoders.qwen3 import ChatTokenizer, Qwen3Encoder
from latentfarm_worker.text_encoders.unweighted import unweighted

#: the layers that the pipeline reads, of a Qwen3 with 36
_TEXT_LAYERS = (9, 18, 27)
#: latent pixels of the VAE to a side of one packed pixel
_PACKED = 2


class Flux2Klein(PipelineModel):
    """A model that embeds no guidance: base has a row for the negative prompt, and distilled takes no guidance."""

    pipeline = "Flux2KleinPipeline"
    denoiser = ("transformer", "Flux2Transformer2DModel")
    vae_class = "AutoencoderKLFlux2"
    # without the head of Qwen3ForCausalLM, whose output is not read
    encoders: ClassVar = {"text_encoder": "Qwen3Model"}
    tokenizers: ClassVar = {"tokenizer": "Qwen2Tokenizer"}

    def __init__(self, parts: Mapping[str, Any], *, name: str, model_digest: str, dtype: torch.dtype) -> None:
        super().__init__(parts, name=name, model_digest=model_digest, dtype=dtype)
        self.pixel_multiple = self.vae_scale_factor = self.vae_scale_factor * _PACKED
        # a distilled model has one row an image at any guidance scale, as one that embeds it
        self.embeds_guidance = bool(parts["model_index"].get("is_distilled", False))
        encoder = parts["text_encoder"]
        self.text_encoder = Qwen3Encoder(
            parts["tokenizer"], encoder, layers=text_layers(encoder.config.num_hidden_layers), thinking=False
        )
        self.max_prompt_tokens = self.text_encoder.length

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        """Check the configs for a transformer that does not denoise the packed latents of the VAE.

        Raises:
            ModelError: it does not.
        """
        config = checkpoint.config("transformer")
        inputs = config.get("in_channels", 128)
        outputs = config.get("out_channels") or inputs
        packed = _PACKED**2 * checkpoint.config("vae").get("latent_channels", 32)
        if not inputs == outputs == packed:
            raise ModelError(
                f"{checkpoint.where('transformer')}: in_channels is {inputs}, out_channels {outputs}, and packed "
                f"latents have {packed}: this is not a text-to-image model; use FLUX.2 klein"
            )

    @classmethod
    def token_counter(cls, checkpoint: Checkpoint) -> Callable[[str], int]:
        """Return a function that counts a prompt's tokens, those of the chat template included."""
        return ChatTokenizer(cls._load_tokenizer(checkpoint, "tokenizer"), thinking=False).count

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        """Return a prompt's tokens, those of the chat template included.

        Raises:
            JobError: code ``prompt_too_complex``: a word has a weight, or there is a BREAK.
        """
        return self.text_encoder.tokenize(unweighted(prompt, syntax))

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return ``encoder_hidden_states`` (512, 3 D) of each prompt; the padding counts, for there is no mask."""
        return [{"encoder_hidden_states": self.text_encoder.encode(prompt.tokens)} for prompt in prompts]

    def noise_schedule(self, num_inference_steps: int, width: int, height: int) -> NoiseSchedule:
        """Return even noise levels, shifted by the image's size and the steps."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        tokens = self._tokens(width, height)
        return NoiseSchedule(even_sigmas(num_inference_steps), compute_empirical_mu(tokens, num_inference_steps))

    @torch.inference_mode()
    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the transformer's output for packed latents, float32 (R, 128, h, w)."""
        height, width = latents.shape[-2:]
        texts = conditioning["encoder_hidden_states"]
        with self._calling(latents, conditioning):
            output = self.denoising_model(
                # a packed pixel is a token
                hidden_states=latents.to(self.dtype).flatten(2).transpose(1, 2),
                encoder_hidden_states=texts,
                # in this dtype and order as the pipeline: half precision rounds the same
                timestep=timesteps.to(self.dtype) / 1000,
                img_ids=_positions(1, height, width, 1, device=self.device),
                txt_ids=_positions(1, 1, 1, texts.shape[1], device=self.device),
                return_dict=False,
            )[0]
        return output.transpose(1, 2).reshape(latents.shape).float()  # type: ignore[no-any-return]

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Return unpacked latents (N, 32, 2 h, 2 w), with the mean and variance that the VAE's encoder removes."""
        statistics = self.vae.bn
        std = torch.sqrt(statistics.running_var.view(1, -1, 1, 1) + self.vae.config.batch_norm_eps)
        scaled = latents * std.to(latents.dtype) + statistics.running_mean.view(1, -1, 1, 1).to(latents.dtype)
        return torch.nn.functional.pixel_shuffle(scaled, _PACKED)


def text_layers(num_hidden_layers: int) -> tuple[int, ...]:
    """Return the layers of the text encoder that the transformer reads.

    Those of the pipeline; an encoder that lacks them is read at one, two and three quarters of its own layers.
    """
    if num_hidden_layers >= _TEXT_LAYERS[-1]:
        return _TEXT_LAYERS
    return tuple(num_hidden_layers * quarter // 4 for quarter in (1, 2, 3))


def _positions(*lengths: int, device: torch.device) -> torch.Tensor:
    """Return the positions of tokens in time, height, width and text, int64 (product of the lengths, 4)."""
    return torch.cartesian_prod(*(torch.arange(length, device=device) for length in lengths))

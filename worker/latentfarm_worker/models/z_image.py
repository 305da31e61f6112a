"""Z-Image and Z-Image Turbo (arXiv 2511.22699): a single-stream transformer over image and caption.

It loads all models of diffusers' ZImagePipeline, and edits no images. diffusers' transformer takes a list of captions,
whose lengths the host must know, and omits its attention mask if all are equal. So here its layers are called with
tensors of a fixed shape, in which each row has a mask of its own: a row's numbers do not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch._dynamo.decorators import maybe_mark_dynamic
from torch.nn.functional import pad

from latentfarm.errors import ModelError
from latentfarm.job import PromptSyntax
from latentfarm_worker.checkpoints import Checkpoint
from latentfarm_worker.host_copy import send
from latentfarm_worker.models.pipeline_model import PipelineModel
from latentfarm_worker.noise_schedule import NoiseSchedule, shift_by_tokens
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt
from latentfarm_worker.text_encoders.qwen3 import ChatTokenizer, Qwen3Encoder
from latentfarm_worker.text_encoders.unweighted import unweighted

#: tokens: the transformer pads those of an image, and of a caption, to a multiple of it with a token that it reads
_MULTIPLE = 32
#: the key of the transformer's layers for images, 2 x 2 latent pixels to a token
_PATCH, _PATCH_KEY = 2, "2-1"


class ZImage(PipelineModel):
    """A model whose guidance adds ``scale`` times the difference to the output, so it begins above 0 and not above 1.

    The engine's output is that of the transformer, negated.
    """

    pipeline = "ZImagePipeline"
    inputs: tuple[str, ...] = ("image", "mask_image")
    denoiser = ("transformer", "ZImageTransformer2DModel")
    encoders: ClassVar = {"text_encoder": "Qwen3Model"}
    tokenizers: ClassVar = {"tokenizer": "Qwen2Tokenizer"}
    patch_size = _PATCH
    guided_above = 0.0

    def __init__(self, parts: Mapping[str, Any], *, name: str, model_digest: str, dtype: torch.dtype) -> None:
        super().__init__(parts, name=name, model_digest=model_digest, dtype=dtype)
        self.text_encoder = Qwen3Encoder(
            parts["tokenizer"], parts["text_encoder"], layers=(-2,), thinking=True, shortest=_MULTIPLE
        )
        self.max_prompt_tokens = self.text_encoder.length
        # its table moves to the device at the first call, which waits for it
        self.denoising_model.rope_embedder(torch.zeros(1, 3, dtype=torch.int64, device=self.device))

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        """Check the configs for a transformer that does not denoise patches of 2 x 2 of the VAE's latents.

        Raises:
            ModelError: it does not.
        """
        path, config = checkpoint.where("transformer"), checkpoint.config("transformer")
        patches = {*zip(config.get("all_patch_size", [2]), config.get("all_f_patch_size", [1]), strict=False)}
        inputs, latents = config.get("in_channels", 16), checkpoint.config("vae").get("latent_channels", 4)
        if (_PATCH, 1) not in patches or inputs != latents:
            raise ModelError(
                f"{path}: it has patches of {sorted(patches)} and {inputs} channels, and latents have {latents}: this "
                "is not a text-to-image model; use Z-Image or Z-Image Turbo"
            )

    @classmethod
    def token_counter(cls, checkpoint: Checkpoint) -> Callable[[str], int]:
        """Return a function that counts a prompt's tokens, those of the chat template included."""
        return ChatTokenizer(cls._load_tokenizer(checkpoint, "tokenizer"), thinking=True).count

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        """Return a prompt's tokens, those of the chat template included.

        Its class is 32, 64, 128, 256 or 512 tokens.

        Raises:
            JobError: code ``prompt_too_complex``: a word has a weight, or there is a BREAK.
        """
        return self.text_encoder.tokenize(unweighted(prompt, syntax))

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return ``encoder_hidden_states`` (L, D), L is ``ids_length``, and ``text_length`` () of each prompt.

        What is behind the first ``text_length`` tokens is not read.
        """
        return [self._encode(prompt.tokens) for prompt in prompts]

    def _encode(self, tokens: TokenizedPrompt) -> Tensors:
        states = self.text_encoder.encode(tokens)
        return {
            "encoder_hidden_states": pad(states, (0, 0, 0, tokens.ids_length - len(states))),
            "text_length": send(torch.tensor(len(tokens.ids)), self.device),
        }

    def noise_schedule(self, num_inference_steps: int, width: int, height: int) -> NoiseSchedule:
        """Return even noise levels, in float32 as the pipeline's, and their shift by the image's size."""
        sigmas = torch.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        mu = shift_by_tokens(self.scheduler_config, self._tokens(width, height))
        return NoiseSchedule(tuple(sigmas.tolist()), mu)

    def combine(self, output: torch.Tensor, negative: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the guided output as the pipeline does: from the prompt's output, not from the negative prompt's."""
        return output + scale * (output - negative)

    @torch.inference_mode()
    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the transformer's output, negated, float32 (R, 16, h, w). Its time runs from noise, 0, to image, 1."""
        with self._calling(latents, conditioning):
            output = transform(
                self.denoising_model,
                latents.to(self.dtype),
                (1000 - timesteps) / 1000,
                conditioning["encoder_hidden_states"],
                conditioning["text_length"],
            )
        return -output.float()


def transform(
    model: Any, latents: torch.Tensor, times: torch.Tensor, texts: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Return the output of a ZImageTransformer2DModel as its ``forward`` for one row, (R, C, h, w).

    A caption is padded with the model's own token to the next multiple of 32, which the others read; what pads it
    further, to its class, is masked.

    Args:
        model: the transformer.
        latents: (R, C, h, w).
        times: float32 (R,), from 0 to 1.
        texts: hidden states of the captions, (R, L, D), L a multiple of 32.
        lengths: tokens of each caption, int64 (R,).
    """
    embedded_time = model.t_embedder(times * model.t_scale).type_as(latents)
    places = torch.arange(texts.shape[1], device=texts.device)
    padded_lengths = (lengths + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE
    text_mask = places < padded_lengths[:, None]
    text_rotation = _rotation(model, pad((places + 1)[:, None], (0, 2)).expand(len(texts), -1, -1))
    text = torch.where((places < lengths[:, None])[..., None], model.cap_embedder(texts), model.cap_pad_token)
    _mark_lengths(text, text_mask, text_rotation)
    for layer in model.context_refiner:
        text = layer(text, text_mask, text_rotation)

    patches = _patches(latents)
    count = patches.shape[1]
    missing = -count % _MULTIPLE
    cells, across = torch.arange(count, device=texts.device), latents.shape[-1] // _PATCH
    # an image is behind its own caption in time; its padding is at the origin
    positions = cells.new_zeros(len(latents), count + missing, 3)
    positions[:, :count, 0] = padded_lengths[:, None] + 1
    positions[:, :count, 1] = cells // across
    positions[:, :count, 2] = cells % across
    image_rotation = _rotation(model, positions)
    image = model.all_x_embedder[_PATCH_KEY](patches)
    image = torch.cat([image, model.x_pad_token.expand(len(image), missing, -1)], dim=1)
    for layer in model.noise_refiner:
        image = layer(image, None, image_rotation, embedded_time)

    both = torch.cat([image, text], dim=1)
    mask = torch.cat([text_mask.new_ones(image.shape[:2]), text_mask], dim=1)
    rotation = torch.cat([image_rotation, text_rotation], dim=1)
    _mark_lengths(both, mask, rotation)
    for layer in model.layers:
        both = layer(both, mask, rotation, embedded_time)
    output = model.all_final_layer[_PATCH_KEY](both[:, :count], c=embedded_time)
    return _unpatched(output, *latents.shape[-2:])


def _mark_lengths(*tensors: torch.Tensor) -> None:
    """Let compiled layers have one program for captions of any length."""
    for tensor in tensors:
        maybe_mark_dynamic(tensor, 1)


def _rotation(model: Any, positions: torch.Tensor) -> torch.Tensor:
    """Return the complex factors of positions in time, height and width, int64 (R, L, 3): (R, L, D / 2)."""
    factors: torch.Tensor = model.rope_embedder(positions.flatten(0, 1))
    return factors.reshape(*positions.shape[:2], -1)


def _patches(latents: torch.Tensor) -> torch.Tensor:
    """Return latents (R, C, h, w) as patches row by row, (R, h w / 4, 4 C)."""
    rows, channels, height, width = latents.shape
    cut = latents.reshape(rows, channels, height // _PATCH, _PATCH, width // _PATCH, _PATCH)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(rows, -1, _PATCH * _PATCH * channels)


def _unpatched(patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return patches (R, h w / 4, 4 C) as latents, (R, C, h, w)."""
    cut = patches.reshape(len(patches), height // _PATCH, width // _PATCH, _PATCH, _PATCH, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, height, width)

"""The interface between the engine and a model family: tokenize, encode, predict, decode, and the model's sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from latentfarm.job import PromptSyntax
from latentfarm_worker.adapters.base import AdapterPart
from latentfarm_worker.adapters.catalogue import Catalogue
from latentfarm_worker.adapters.lora.part import Loras
from latentfarm_worker.adapters.module_cache import ModuleCache
from latentfarm_worker.adapters.refiners import Refiners
from latentfarm_worker.device_conditions import device_conditions
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models.image_encoder import WeightsGuard
from latentfarm_worker.models.recommended import Recommended
from latentfarm_worker.noise_schedule import NoiseSchedule
from latentfarm_worker.posterior import Posterior
from latentfarm_worker.text_encoders.embeddings import Embeddings
from latentfarm_worker.text_encoders.placement import EncoderPlacement
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt


class Family(Protocol):
    """One loaded model.

    Attributes:
        dtype, vae_dtype: the dtypes of the denoising model and of the VAE.
        native_width, native_height: pixels of an image without a size of its own.
        vae_scale_factor: pixels to a side of one latent pixel.
        pixel_multiple: sides of an image in pixels are multiples of it.
        encoder_parts: the parts that no denoising step needs.
        embeds_guidance: whether guidance is a conditioning tensor, as in guidance-distilled models, instead of a second
            row with the negative prompt.
        guided_above: guidance scales above it take a second row with the negative prompt.
        scheduler_config: the model's own scheduler config with its ``_class_name``.
        model_digest: a sha256 over the weight files.
        licence: as the model's files state it; empty: they state none.
        recommended: the steps and guidance of jobs that set none.
        max_prompt_tokens: longer prompts are cut, start and end tokens included.
        embedding_widths: by text encoder that takes the vectors of embeddings, the numbers of a vector.
        embeddings: those that prompts may name; None: there are none.
        max_clip_skip: the layers at the end of the text encoders that can be skipped.
        compiled: whether some calls run compiled.
        quantization, text_quantization: how the weights of the denoising model and of the text encoders are quantized,
            ``none`` by default.
        adapter_parts: the adapters that jobs may use.
        loras: the LoRAs among them.
        refiners: those that end a run, and are no part of its first stage.
        adapter_modules: those with weights of their own, in memory.
        inputs: the fields of input images that jobs may have, besides those of adapters.
        required_inputs: those that each job must have.
        vae_guard: held while the weights of the VAE are moved, since other threads call its encoder.
        encoder_placement: where the text encoders are; ``encode`` is called by its method of this name.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype
    latent_channels: int
    native_width: int
    native_height: int
    vae_scale_factor: int
    pixel_multiple: int
    encoder_parts: tuple[str, ...]
    embeds_guidance: bool
    guided_above: float
    scheduler_config: dict[str, Any]
    model_digest: str
    licence: str
    recommended: Recommended
    max_prompt_tokens: int
    embedding_widths: tuple[int, ...]
    embeddings: Embeddings | None
    max_clip_skip: int
    compiled: bool
    quantization: str
    text_quantization: str
    adapter_parts: list[AdapterPart]
    loras: Loras
    refiners: Refiners
    adapter_modules: ModuleCache
    inputs: tuple[str, ...]
    required_inputs: tuple[str, ...]
    vae_guard: WeightsGuard
    encoder_placement: EncoderPlacement

    @property
    def pipeline(self) -> str:
        """The diffusers pipeline that renders the same images."""

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """The modules by part: ``unet`` or ``transformer``, ``vae``, ``text_encoder``."""

    @property
    def text_conditions(self) -> Mapping[str, Any]:
        """What a prompt's conditioning depends on besides the prompt and the device, in a JSON form."""

    def use_catalogue(self, catalogue: Catalogue) -> None:
        """Let jobs name the adapters of a catalogue, from the next one on."""

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        """Return a prompt's tokens. Thread-safe.

        Raises:
            JobError: code ``prompt_too_complex``: a weight or the number of chunks is over its limit. Or an embedding
                cannot be used.
        """

    def encode(self, prompts: Sequence[Prompt]) -> Sequence[Tensors]:
        """Return the conditioning of each prompt, without a dimension for rows.

        It has at least ``encoder_hidden_states`` (77 x chunks, D). A prompt's tensors do not depend on the others.
        """

    def row_conditioning(self, width: int, height: int, guidance_scale: float) -> Tensors:
        """Return the conditioning of an image's size in pixels and of its guidance scale. Thread-safe.

        The tensors are on the CPU, in the dtypes that ``predict`` takes, without a dimension for rows. There may be
        none.
        """

    def noise_schedule(self, num_inference_steps: int, width: int, height: int) -> NoiseSchedule:
        """Return the noise levels of the model's pipeline for an image's size in pixels. Thread-safe."""

    def combine(self, output: torch.Tensor, negative: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the guided output, float32 (R, C, h, w), row by row.

        A row without guidance is its own negative, and its output stays as it is, to the bit.

        Args:
            output: the model's output for the prompts, float32 (R, C, h, w).
            negative: that for the negative prompts, float32 (R, C, h, w).
            scale: guidance scales, float32 (R, 1, 1, 1).
        """

    def compile(self) -> None:
        """Compile the model for its native size; the next calls do it. Calls with another size run uncompiled."""

    def uncompile(self) -> None:
        """Run all calls uncompiled."""

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the model's output, float32 (R, C, h, w).

        Args:
            latents: scaled model inputs, float32 (R, C, h, w).
            timesteps: float32 (R,).
            conditioning: tensors by name, (R, ...) each; ``step_index``, int64 (R,), has the evaluations of the row's
                image that are done.
        """

    def encode_image(self, pixels: torch.Tensor, kept: torch.Tensor | None = None) -> Posterior:
        """Return the distribution of an image's latents, in the VAE's own scale. Thread-safe.

        Args:
            pixels: uint8 (H, W, 3) on the host.
            kept: what of the image is encoded, the rest being gray, bool (H, W) [default: all].

        Raises:
            UnavailableError: the weights have left the device.
        """

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents of the VAE, float32 (C, h, w) on the host, in the scale of the model. Thread-safe."""

    def decode(
        self, latents: torch.Tensor, *, float32: bool = False, tiled: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images of latents, and whether the decoder's output was finite, both on the device.

        Args:
            latents: float32 (N, C, h, w).
            float32: run the decoder in float32 instead of its own dtype. It is slower, but cannot overflow.
            tiled: decode in tiles. It needs less memory, and gives other pixels.

        Returns:
            uint8 (N, H, W, 3) and bool (N,).
        """


def native_shape(family: Family) -> LatentShape:
    """Return the latent shape of the family's native size, for a prompt of one chunk."""
    return LatentShape(family.native_height // family.vae_scale_factor, family.native_width // family.vae_scale_factor)


def precision_of(family: Family) -> str:
    """Return the dtype of the denoising model, and how it is quantized if it is."""
    dtype = str(family.dtype).removeprefix("torch.")
    return dtype if family.quantization == "none" else f"{dtype}, {family.quantization}"


def conditions_of(family: Family) -> str:
    """Return what decides how a model's device rounds besides the dtype, the same for equal workers."""
    parts = [*device_conditions(family.device).values()]
    if family.encoder_placement.device.type != family.device.type:
        # where a GPU renders, a CPU rounds otherwise
        parts += ["text encoder on", *device_conditions(family.encoder_placement.device).values()]
    return ", ".join(map(str, [*parts, *["compiled"] * family.compiled]))

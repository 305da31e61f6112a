"""A model of a diffusers pipeline: a denoising model, a VAE and text encoders. The base of all families."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar, Self

import torch

from latentfarm.errors import ModelError
from latentfarm.job import PromptSyntax
from latentfarm.limits import MAX_TOKENS
from latentfarm.model_source import parse_source
from latentfarm_worker.adapters.base import AdapterPart
from latentfarm_worker.adapters.catalogue import Catalogue
from latentfarm_worker.adapters.controlnet import ControlNets, NoControlNets
from latentfarm_worker.adapters.image_prompt.part import ImagePrompts, has_image_prompts
from latentfarm_worker.adapters.lora.part import Loras, has_loras
from latentfarm_worker.adapters.module_cache import ModuleCache
from latentfarm_worker.adapters.refiners import Refiners
from latentfarm_worker.checkpoints import Checkpoint
from latentfarm_worker.models.compiled_blocks import compile_blocks, uncompile_blocks, uncompiled
from latentfarm_worker.models.image_encoder import ImageEncoder, WeightsGuard
from latentfarm_worker.models.memory import Memory
from latentfarm_worker.models.quantization import move_quantized
from latentfarm_worker.models.recommended import recommend
from latentfarm_worker.noise_schedule import OWN_SCHEDULE, NoiseSchedule
from latentfarm_worker.posterior import Posterior
from latentfarm_worker.text_encoders.conditions import model_conditions
from latentfarm_worker.text_encoders.embeddings import EmbeddingCatalogue, Embeddings
from latentfarm_worker.text_encoders.placement import EncoderPlacement
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt

#: prompts or chunks in one forward pass of a text encoder; padding up to it costs a GPU little, and a CPU much
_ENCODER_ROWS = {"cuda": 8}
#: of ControlNets, IP-Adapters and refiners on the device, unless a setting has others
_ADAPTER_BYTES = 8 * 1024**3


class PipelineModel(ABC):
    """One model, as ``models.base.Family`` describes it.

    A family's class names its parts, and overrides what differs.

    Args:
        parts: modules and tokenizers by part, ``scheduler_config``, ``model_index`` with the pipeline's settings,
            ``licence``, which may be None, ``memory``, its settings, ``encoder_placement``, and ``text_digest``, a
            sha256 over the text encoders.
        name: the source as the user wrote it.
        model_digest: a sha256 over the weights.
        dtype: that of the denoising model and the text encoders.
    """

    #: the diffusers pipeline that renders the same images
    pipeline: ClassVar[str]
    #: part and diffusers class of the denoising model
    denoiser: ClassVar[tuple[str, str]]
    #: diffusers class of the VAE
    vae_class: ClassVar[str] = "AutoencoderKL"
    #: part -> transformers class; parts that a checkpoint leaves out are None
    encoders: ClassVar[Mapping[str, str]]
    #: part -> transformers class
    tokenizers: ClassVar[Mapping[str, str]]
    #: parts that a checkpoint may leave out
    optional: ClassVar[frozenset[str]] = frozenset()
    #: whether a VAE that sets force_upcast runs in float32 where the model is float16
    upcast_vae: ClassVar[bool] = False
    #: sides of the patches of latent pixels that become tokens; those of an image divide by them
    patch_size: ClassVar[int] = 1
    #: the nets that the denoising model takes
    control_nets: ClassVar[type[ControlNets]] = NoControlNets
    #: whether it takes IP-Adapters
    takes_image_prompts: ClassVar[bool] = False
    #: the text encoder whose states a refiner reads; empty: the model takes none
    refined_by: ClassVar[str] = ""

    #: fields of input images that jobs may have
    inputs: tuple[str, ...] = ()
    #: those that each job must have
    required_inputs: tuple[str, ...] = ()

    embeds_guidance = False
    guided_above = 1.0
    max_clip_skip = 0
    max_prompt_tokens = MAX_TOKENS
    embedding_widths: tuple[int, ...] = ()
    embeddings: Embeddings | None = None

    def __init__(self, parts: Mapping[str, Any], *, name: str, model_digest: str, dtype: torch.dtype) -> None:
        self.denoising_model, self.vae = parts[self.denoiser[0]], parts["vae"]
        self.encoder_parts = tuple(part for part in self.encoders if parts.get(part) is not None)
        self.modules: Mapping[str, torch.nn.Module] = {
            part: parts[part] for part in (self.denoiser[0], "vae", *self.encoder_parts)
        }
        self._make_adapters(parts, dtype)
        self.name = name
        self.model_digest = model_digest
        self.licence: str = parts.get("licence") or ""
        self.dtype = dtype
        self.vae_dtype: torch.dtype = self.vae.dtype
        self.device = torch.device(self.denoising_model.device)
        self._image_encoder = ImageEncoder(self.vae, self.device)
        self.vae_guard: WeightsGuard = self._image_encoder.guard
        self.encoder_placement: EncoderPlacement = parts["encoder_placement"]
        self.encoder_rows = _ENCODER_ROWS.get(self.encoder_placement.device.type, 1)
        self.scheduler_config: dict[str, Any] = parts["scheduler_config"]
        self.recommended = recommend(
            self.pipeline,
            index=parts["model_index"],
            denoiser=self.denoising_model.config,
            scheduler=self.scheduler_config,
            # of a single file, its name distinguishes turbo models, not that of its base
            name=parse_source(name).location,
        )
        self.latent_channels: int = self.denoising_model.config.in_channels
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.native_width, self.native_height = self._native_size()
        self.pixel_multiple: int = self.vae_scale_factor * self.patch_size
        self.compiled = False
        memory: Memory = parts["memory"]
        self.quantization, self.text_quantization = memory.quantization, memory.text_quantization
        self.text_conditions: Mapping[str, Any] = model_conditions(
            {part: parts[part] for part in self.encoder_parts},
            {part: parts[part] for part in self.tokenizers if part in parts},
            {
                "weights": parts["text_digest"],
                "pipeline": parts["model_index"],
                "quantization": self.text_quantization,
                "rows": self.encoder_rows,
                "family": f"{type(self).__module__}.{type(self).__qualname__}",
            },
        )

    def _make_adapters(self, parts: Mapping[str, Any], dtype: torch.dtype) -> None:
        """Make the parts that load and apply the adapters of jobs."""
        self.adapter_modules = ModuleCache(torch.device(self.denoising_model.device), _ADAPTER_BYTES)
        self.controlnets = self.control_nets(
            self.denoising_model,
            vae=self.vae,
            encode=self.encode_image,
            pipeline=self.pipeline,
            dtype=dtype,
            cache=self.adapter_modules,
        )
        self.loras = Loras(
            self.denoising_model,
            part=self.denoiser[0],
            encoders={part: parts[part] for part in self.encoder_parts},
            pipeline=self.pipeline,
            dtype=dtype,
            device=torch.device(self.denoising_model.device),
        )
        self.image_prompts = ImagePrompts(
            self.denoising_model if self.takes_image_prompts else None,
            pipeline=self.pipeline,
            dtype=dtype,
            cache=self.adapter_modules,
        )
        self.refiners = Refiners(
            parts[self.refined_by].config if self.refined_by else None,
            channels=self.vae.config.latent_channels,
            pipeline=self.pipeline,
            dtype=dtype,
            cache=self.adapter_modules,
        )
        self.adapter_parts: list[AdapterPart] = [self.controlnets, self.loras, self.image_prompts]

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device, memory: Memory | None = None
    ) -> Self:
        """Load a checkpoint.

        Raises:
            ModelError: the weights are not safetensors, the family does not support the model, or its weights cannot be
                placed or quantized as requested.
        """
        cls.check(checkpoint)
        digest = checkpoint.digest((cls.denoiser[0], "vae", *cls._present(checkpoint, cls.encoders)))
        try:
            parts = cls._load_parts(checkpoint, dtype, device, memory or Memory())
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            raise ModelError(
                f"{checkpoint.name}: cannot be loaded as {dtype} on {device}: {error}; check that it is "
                f"complete and opens with {cls.pipeline}.from_pretrained"
            ) from error
        return cls(parts, name=checkpoint.name, model_digest=digest, dtype=dtype)

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        """Check the configs for what the family does not support.

        Raises:
            ModelError: there is something.
        """
        del checkpoint

    def use_catalogue(self, catalogue: Catalogue) -> None:
        """Let jobs name the adapters of a catalogue, from the next one on."""
        for part in (self.controlnets, self.loras, self.image_prompts, self.refiners):
            part.catalogue = catalogue
        self.use_embeddings(catalogue)

    def use_embeddings(self, catalogue: EmbeddingCatalogue) -> None:
        """Let prompts name the embeddings of a catalogue, from the next one on."""
        self.embeddings = Embeddings(catalogue, self.embedding_widths, model=self.name)

    # -- inference -------------------------------------------------------------------------------------------

    @abstractmethod
    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        """Return a prompt's tokens. Thread-safe."""

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return the conditioning of each prompt, without a dimension for rows."""

    def row_conditioning(self, width: int, height: int, guidance_scale: float) -> Tensors:
        """Return no conditioning besides the text."""
        del width, height, guidance_scale
        return {}

    def noise_schedule(self, num_inference_steps: int, width: int, height: int) -> NoiseSchedule:
        """Return the scheduler's own noise levels."""
        del num_inference_steps, width, height
        return OWN_SCHEDULE

    def _tokens(self, width: int, height: int) -> int:
        """Return the tokens of an image, with sides in pixels."""
        return (width // self.pixel_multiple) * (height // self.pixel_multiple)

    def combine(self, output: torch.Tensor, negative: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the output with classifier-free guidance (arXiv 2207.12598), float32 (R, C, h, w)."""
        return negative + scale * (output - negative)

    @abstractmethod
    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the model's output, float32 (R, C, h, w)."""

    def compile(self) -> None:
        """Let the denoising model and the VAE's decoder be compiled at their first call with each number of rows."""
        compile_blocks(self.denoising_model, self.vae.decoder)
        self.compiled = True

    def uncompile(self) -> None:
        """Run everything uncompiled."""
        uncompile_blocks(self.denoising_model, self.vae.decoder)
        self.compiled = False

    @contextmanager
    def _calling(self, latents: torch.Tensor, conditioning: Tensors) -> Iterator[None]:
        """Call the denoising model within this, with the LoRAs and image prompts of the rows."""
        # a compiled block would be compiled again with them, and then again without
        changed = {self.loras.applied: has_loras, self.image_prompts.attended: has_image_prompts}
        used = [change for change, has in changed.items() if has(conditioning)]
        with self._program(latents, eager=bool(used)), ExitStack() as stack:
            for change in used:
                stack.enter_context(change(conditioning))
            yield

    def _program(self, latents: torch.Tensor, *, eager: bool = False) -> AbstractContextManager[None]:
        """Return the context of a call: other sizes than the native one, or ``eager``, run uncompiled."""
        factor = self.vae_scale_factor
        native = latents.shape[-2] * factor == self.native_height and latents.shape[-1] * factor == self.native_width
        if self.compiled and (eager or not native):
            return uncompiled()
        return nullcontext()

    def encode_image(self, pixels: torch.Tensor, kept: torch.Tensor | None = None) -> Posterior:
        """Return the distribution of an image's latents, as ``ImageEncoder.encode``. Thread-safe."""
        return self._image_encoder.encode(pixels, kept)

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents of the VAE in the scale of the model, the reverse of ``_unscaled``."""
        shift = float(self.vae.config.get("shift_factor") or 0.0)
        return (latents - shift) * float(self.vae.config.scaling_factor)

    @torch.inference_mode()
    def decode(
        self, latents: torch.Tensor, *, float32: bool = False, tiled: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images, uint8 (N, H, W, 3), and whether the VAE's output was finite, bool (N,)."""
        # not the encoder, which another thread may call now
        decoder = [self.vae.decoder, *([self.vae.post_quant_conv] if self.vae.post_quant_conv is not None else [])]
        for module in decoder if float32 else ():
            module.to(torch.float32)
        self.vae.use_tiling = tiled
        try:
            with self._program(latents, eager=float32 or tiled):
                images = self._decode(latents)
        finally:
            self.vae.use_tiling = False
            for module in decoder if float32 else ():
                module.to(self.vae_dtype)  # exact: the weights came from this dtype
        finite = torch.isfinite(images).flatten(1).all(dim=1)
        images = (images / 2 + 0.5).nan_to_num(0.0).clamp(0, 1)
        return (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8), finite

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        dtype = next(self.vae.decoder.parameters()).dtype
        scaled = self._unscaled(latents.to(dtype)).contiguous(memory_format=torch.channels_last)
        images: torch.Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return images.float()

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents in the VAE's own scale."""
        shift = float(self.vae.config.get("shift_factor") or 0.0)
        scaled = latents / float(self.vae.config.scaling_factor)
        return scaled + shift if shift else scaled

    def _native_size(self) -> tuple[int, int]:
        """Return the width and height in pixels of an image without a size of its own."""
        size = int(self.vae.config.sample_size)
        return size, size

    # -- loading ---------------------------------------------------------------------------------------------

    @classmethod
    def token_counter(cls, checkpoint: Checkpoint) -> Callable[[str], int]:
        """Return a function that counts a prompt's tokens, start and end included, without loading a module.

        It counts for the last text encoder, which reads the most.
        """
        *_, part = cls._present(checkpoint, cls.tokenizers)
        tokenizer = cls._load_tokenizer(checkpoint, part)
        return lambda prompt: len(tokenizer([prompt], truncation=False, verbose=False).input_ids[0])

    @classmethod
    def _load_tokenizer(cls, checkpoint: Checkpoint, part: str) -> Any:
        import transformers

        return checkpoint.load_tokenizer(part, getattr(transformers, cls.tokenizers[part]))

    @classmethod
    def _present(cls, checkpoint: Checkpoint, parts: Mapping[str, str]) -> list[str]:
        return [part for part in parts if part not in cls.optional or checkpoint.has(part)]

    @classmethod
    def _load_parts(
        cls, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, memory: Memory
    ) -> dict[str, Any]:
        import diffusers
        import transformers
        from transformers.utils import logging

        # progress bars would fill the worker's log
        logging.disable_progress_bar()
        part, kind = cls.denoiser
        denoising_model = checkpoint.load_model(part, getattr(diffusers, kind), dtype)
        # the default of force_upcast is true, and only the XL pipelines of diffusers read it
        upcast = cls.upcast_vae and dtype == torch.float16 and checkpoint.config("vae").get("force_upcast", True)
        vae = checkpoint.load_model("vae", getattr(diffusers, cls.vae_class), torch.float32 if upcast else dtype)
        models: dict[str, Any] = {part: denoising_model, "vae": vae}
        for part in cls._present(checkpoint, cls.encoders):
            models[part] = checkpoint.load_model(part, getattr(transformers, cls.encoders[part]), dtype)
        for model in models.values():
            model.eval().requires_grad_(requires_grad=False)
        cls._arrange(denoising_model)
        move_quantized(denoising_model, memory.quantization, dtype=dtype, device=device)
        models["vae"].to(device).to(memory_format=torch.channels_last)
        encoders = cls._present(checkpoint, cls.encoders)
        placement = memory.place_text_encoders([models[part] for part in encoders], device)
        tokenizers = {part: cls._load_tokenizer(checkpoint, part) for part in cls._present(checkpoint, cls.tokenizers)}
        return {
            **models,
            **tokenizers,
            "scheduler_config": cls._scheduler_config(checkpoint),
            "model_index": checkpoint.index,
            "memory": memory,
            "encoder_placement": placement,
            "text_digest": checkpoint.digest(encoders),
            "licence": checkpoint.licence,
        }

    @classmethod
    def _arrange(cls, denoising_model: Any) -> None:
        """Arrange the weights of the denoising model for speed."""
        del denoising_model

    @classmethod
    def _scheduler_config(cls, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the scheduler's config, completed with its class's defaults."""
        import diffusers

        config = checkpoint.config("scheduler")
        scheduler = getattr(diffusers, str(config.get("_class_name")), None)
        if scheduler is None:
            raise ModelError(
                f"{checkpoint.where('scheduler')}: diffusers has no scheduler {config.get('_class_name')!r}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers deprecates its own internals; users cannot act on it
            return {**scheduler.from_config(config).config, "_class_name": scheduler.__name__}

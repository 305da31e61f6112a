"""The IP-Adapters of one model (arXiv 2308.06721): their holds, and the attention that rows pay to their images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from latentfarm.adapter_kind import AdapterKind
from latentfarm.edit_fields import ImagePrompt
from latentfarm.errors import JobError, ModelError
from latentfarm.job import Job
from latentfarm.recent_cache import RecentCache
from latentfarm_worker.adapters.catalogue import Adapter, Catalogue
from latentfarm_worker.adapters.image_prompt.attention import PromptRows, attending
from latentfarm_worker.adapters.image_prompt.loading import (
    AdapterWeights,
    cross_attentions,
    files_of,
    load_adapter,
    load_encoder,
)
from latentfarm_worker.adapters.module_cache import LoadedModule, ModuleCache
from latentfarm_worker.adapters.module_hold import ModuleHold
from latentfarm_worker.clip_pixels import ClipPixels
from latentfarm_worker.host_copy import send
from latentfarm_worker.text_encoders.prompt import Tensors

if TYPE_CHECKING:
    from latentfarm_worker.engine.job_inputs import JobInputs
    from latentfarm_worker.engine.sampling_plan import SamplingPlan

#: before the number of a prompt among those of its row, and the adapter's digest
PREFIX = "ip_adapter:"
_TOKENS, _SCALE = ":tokens", ":scale"
#: images whose tokens are kept; those of one take a few kilobytes
_KEPT = 256


class Tokens(NamedTuple):
    """What rows pay attention to, (T, D) each on the device: for the prompt, and for the negative prompt."""

    prompt: torch.Tensor
    negative: torch.Tensor


class Use(NamedTuple):
    """An adapter that an image uses: the prompt, the adapter, the encoder, and its input, float32 (1, 3, S, S)."""

    prompt: ImagePrompt
    adapter: LoadedModule
    encoder: LoadedModule
    pixels: torch.Tensor


class ImagePromptHold(ModuleHold):
    """The image prompts of one image."""

    def __init__(self, part: ImagePrompts) -> None:
        super().__init__(part.cache)
        self._part = part
        self._uses: list[Use] = []

    def add(self, use: Use, adapter: Adapter) -> None:
        """Add the next prompt."""
        self._uses.append(use)
        self._modules.append(use.adapter)
        self.adapters.append(adapter)

    def conditioning(self, row: int) -> Tensors:
        """Return of each prompt the tokens, (T, D), and the scale, float32 ()."""
        found: dict[str, torch.Tensor] = {}
        for number, use in enumerate(self._uses):
            name = f"{PREFIX}{number}:{use.adapter.key}"
            found[name + _TOKENS] = self._part.tokens(use)[row]
            found[name + _SCALE] = send(torch.tensor(use.prompt.scale), self._part.device)
        return found


class ImagePrompts:
    """The IP-Adapters of a model with a U-Net, an ``adapters.base.AdapterPart``.

    Args:
        unet: the U-Net, or None for a model that takes none.
        pipeline: the diffusers pipeline of the model, for messages.
        dtype: the dtype of the adapters.
        cache: the adapters in memory.

    Attributes:
        catalogue: the adapters by alias.
    """

    def __init__(self, unet: Any, *, pipeline: str, dtype: torch.dtype, cache: ModuleCache) -> None:
        self._unet, self._pipeline, self._dtype = unet, pipeline, dtype
        self.device = cache.device
        self.cache = cache
        self.catalogue = Catalogue()
        self._layers = {} if unet is None else cross_attentions(unet)
        self._tokens: RecentCache[tuple[str, str], Tokens] = RecentCache(_KEPT)

    def prepare(self, job: Job, inputs: JobInputs, plan: SamplingPlan) -> ImagePromptHold | None:
        """Load the adapters of a job, and make their images small; None if it has none. Thread-safe.

        Raises:
            JobError: code ``adapter_unknown``, ``adapter_mismatch`` for an adapter of another base model,
                ``adapter_invalid`` for one that cannot be read, ``input_missing`` if an image is not there.
        """
        del plan
        prompts = job.image_prompts
        if not prompts:
            return None
        if self._unet is None:
            raise JobError(
                "adapter_mismatch",
                f"ip_adapter {prompts[0].name!r}: models of {self._pipeline} take no IP-Adapter; remove ip_adapter, or "
                "use Stable Diffusion 1.x, 2.x or XL",
            )
        if len(inputs.image_prompts) != len(prompts):
            raise JobError("input_missing", f"{len(prompts)} IP-Adapters have {len(inputs.image_prompts)} images")
        hold = ImagePromptHold(self)
        for prompt, image in zip(prompts, inputs.image_prompts, strict=True):
            adapter = self.catalogue.get(AdapterKind.IP_ADAPTER, prompt.name)
            file, folder = files_of(adapter.alias, adapter.path)
            name = f"IP-Adapter {adapter.alias}"
            # another encoder may be beside a file of the same digest
            encoder = self.cache.get(
                f"encoder of {folder}",
                f"the image encoder of {name}",
                partial(self._load_encoder, adapter, folder),
                hold,
            )
            loaded = self.cache.get(adapter.digest, name, partial(self._load, adapter, file, encoder), hold)
            side = encoder.module.config.image_size
            hold.add(Use(prompt, loaded, encoder, ClipPixels(side, side).run(image)), adapter)
        return hold

    def tokens(self, use: Use) -> Tokens:
        """Return the tokens of an image, encoded once. On the engine's thread."""
        key = (use.adapter.key, use.prompt.image)
        found = self._tokens.get(key)
        if found is None:
            self.cache.begin(use.encoder)
            try:
                found = self._encode(use.encoder.module, use.adapter.module, use.pixels)
            finally:
                self.cache.end(use.encoder)
            self._tokens.put(key, found)
        return found

    @contextmanager
    def attended(self, conditioning: Tensors) -> Iterator[None]:
        """Let the rows of a call pay attention to their images within this, as far as they have any."""
        # a row has less than ten prompts, so their numbers sort as text
        stems = sorted(name.removesuffix(_SCALE) for name in conditioning if _is_scale(name))
        prompts = [
            PromptRows(self.cache[stem.rpartition(":")[2]], conditioning[stem + _TOKENS], conditioning[stem + _SCALE])
            for stem in stems
        ]
        with attending(self._layers if prompts else {}, prompts):
            yield

    @torch.inference_mode()
    def _encode(self, encoder: Any, adapter: AdapterWeights, pixels: torch.Tensor) -> Tokens:
        """Return the tokens of an image and of none, as ``encode_image`` of diffusers' pipelines."""
        rows = send(pixels.to(self._dtype), self.device)
        if adapter.reads_states:
            states = [
                encoder(each, output_hidden_states=True).hidden_states[-2] for each in (rows, torch.zeros_like(rows))
            ]
        else:
            embedding = encoder(rows).image_embeds
            states = [embedding, torch.zeros_like(embedding)]
        return Tokens(*(adapter.projection(each)[0] for each in states))

    # -- load ------------------------------------------------------------------------------------------------

    def _load_encoder(self, adapter: Adapter, folder: Path) -> torch.nn.Module:
        try:
            return load_encoder(folder, self._dtype)
        except (ModelError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise JobError(
                "adapter_invalid", f"ip_adapter {adapter.alias!r}: its image encoder cannot be loaded: {error}"
            ) from error

    def _load(self, adapter: Adapter, file: Path, encoder: LoadedModule) -> torch.nn.Module:
        try:
            loaded = load_adapter(adapter.alias, file, self._unet, self._dtype)
        except (ModelError, OSError) as error:
            raise JobError("adapter_invalid", f"ip_adapter {adapter.alias!r}: {error}") from error
        config = encoder.module.config
        given = config.hidden_size if loaded.reads_states else config.projection_dim
        first = next(each for each in loaded.projection.modules() if isinstance(each, torch.nn.Linear))
        if first.in_features != given:
            raise JobError(
                "adapter_invalid",
                f"ip_adapter {adapter.alias!r} reads {first.in_features} numbers of an image, and its image encoder "
                f"makes {given}; put the encoder beside it that it was trained with",
            )
        return loaded


def has_image_prompts(conditioning: Tensors) -> bool:
    """Return whether the rows of a call have image prompts."""
    return any(_is_scale(name) for name in conditioning)


def _is_scale(name: str) -> bool:
    return name.startswith(PREFIX) and name.endswith(_SCALE)

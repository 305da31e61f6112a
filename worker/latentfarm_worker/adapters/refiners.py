"""The refiners of Stable Diffusion XL (arXiv 2307.01952): U-Nets that make the last steps of an image.

A refiner attends to the second text encoder alone, and is conditioned on an aesthetic score, not on the target's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from latentfarm.adapter_kind import AdapterKind
from latentfarm.errors import JobError
from latentfarm_worker.adapters.catalogue import Adapter, Catalogue
from latentfarm_worker.adapters.kinds import REFINER_IDS
from latentfarm_worker.adapters.model_loading import load_checked, read_config
from latentfarm_worker.adapters.module_cache import ModuleCache
from latentfarm_worker.adapters.module_hold import ModuleHold
from latentfarm_worker.host_copy import send
from latentfarm_worker.text_encoders.prompt import Tensors

#: before a refiner's digest
_PREFIX = "refiner:"
#: aesthetic scores of the prompt and of the negative prompt, the defaults of ``StableDiffusionXLImg2ImgPipeline``
_SCORES = (6.0, 2.5)


class RefinerHold(ModuleHold):
    """The refiner of one image.

    Args:
        refiners: those of the model.
        adapter: its folder.
        size: width and height of the image in pixels.
    """

    def __init__(self, refiners: Refiners, adapter: Adapter, size: tuple[int, int]) -> None:
        super().__init__(refiners.cache)
        self._device = refiners.cache.device
        self._width, self._height = size
        self.adapters = [adapter]
        self._modules = [
            refiners.cache.get(adapter.digest, f"refiner {adapter.alias}", partial(refiners.load, adapter), self)
        ]

    def conditioning(self, row: int) -> Tensors:
        """Return the numbers that the refiner is conditioned on, float32 (5,), by the name of its digest."""
        numbers = torch.tensor([self._height, self._width, 0, 0, _SCORES[row]]).float()
        return {_PREFIX + self._modules[0].key: send(numbers, self._device)}


class Refiners:
    """The refiners of one model.

    Args:
        text: the config of the text encoder whose states they read; None: the model takes none.
        channels: those of the latents.
        pipeline: the diffusers pipeline of the model, for messages.
        dtype: the dtype of the refiners.
        cache: the refiners in memory.

    Attributes:
        catalogue: the adapters by alias.
    """

    def __init__(
        self, text: Any | None, *, channels: int, pipeline: str, dtype: torch.dtype, cache: ModuleCache
    ) -> None:
        self.cache = cache
        self.catalogue = Catalogue()
        self._text, self._channels = text, channels
        self._pipeline, self._dtype = pipeline, dtype

    def prepare(self, name: str, width: int, height: int) -> RefinerHold:
        """Load a refiner for an image of a size in pixels. Thread-safe.

        Raises:
            JobError: code ``adapter_unknown``, ``adapter_mismatch`` for one of another base model or if the model
                takes none, ``adapter_invalid`` for one that cannot be read.
        """
        if self._text is None:
            raise JobError(
                "adapter_mismatch",
                f"refiner {name!r}: models of {self._pipeline} take none; remove refiner, or use Stable Diffusion XL",
            )
        return RefinerHold(self, self.catalogue.get(AdapterKind.REFINER, name), (width, height))

    def load(self, adapter: Adapter) -> torch.nn.Module:
        """Return a refiner on the host.

        Raises:
            JobError: as ``prepare``.
        """
        net = load_checked(
            adapter,
            "UNet2DConditionModel",
            self._dtype,
            config_of=lambda each: read_config(each.path),
            check=self._check,
        )
        net.to(memory_format=torch.channels_last).fuse_qkv_projections()
        return net  # type: ignore[no-any-return]

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor | None:
        """Return the output of the rows' refiner, float32 (R, C, h, w); None for rows without one.

        Args:
            latents: scaled model inputs, float32 (R, C, h, w).
            timesteps: float32 (R,).
            conditioning: of the micro-batch; the hidden states are those of both text encoders.
        """
        name = next((each for each in conditioning if each.startswith(_PREFIX)), None)
        if name is None or self._text is None:
            return None
        output = self.cache[name.removeprefix(_PREFIX)](
            latents.to(self._dtype, memory_format=torch.channels_last),
            timesteps,
            # the second encoder's are the last
            encoder_hidden_states=conditioning["encoder_hidden_states"][..., -self._text.hidden_size :],
            added_cond_kwargs={"text_embeds": conditioning["text_embeds"], "time_ids": conditioning[name]},
            return_dict=False,
        )[0]
        return output.float()  # type: ignore[no-any-return]

    def _check(self, alias: str, config: Mapping[str, Any]) -> None:
        assert self._text is not None  # noqa: S101 (prepare has checked it)
        wanted = {
            "in_channels": self._channels,
            "out_channels": self._channels,
            "cross_attention_dim": self._text.hidden_size,
            "projection_class_embeddings_input_dim": self._text.projection_dim
            + REFINER_IDS * config["addition_time_embed_dim"],
            "time_cond_proj_dim": None,
            "class_embed_type": None,
            "encoder_hid_dim_type": None,
        }
        for key, value in wanted.items():
            if config.get(key) != value:
                raise JobError(
                    "adapter_mismatch",
                    f"refiner {alias!r} is for another base model: its {key} is {config.get(key)!r}, and the model "
                    f"needs {value!r}; use a refiner of this base",
                )

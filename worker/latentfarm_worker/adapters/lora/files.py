"""LoRA files, in the forms that kohya's scripts, diffusers and peft write, read by diffusers' own converters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from latentfarm.errors import JobError

#: by pipeline: the diffusers class that reads its LoRAs
LOADERS: Mapping[str, str] = {
    "StableDiffusionPipeline": "StableDiffusionLoraLoaderMixin",
    "StableDiffusionXLPipeline": "StableDiffusionXLLoraLoaderMixin",
    "StableDiffusion3Pipeline": "SD3LoraLoaderMixin",
    "FluxPipeline": "FluxLoraLoaderMixin",
    "ZImagePipeline": "ZImageLoraLoaderMixin",
}
#: parts of names of what is no plain LoRA, and what it is
_OTHERS: Mapping[str, str] = {
    "dora_scale": "a DoRA (it rescales whole weights)",
    "lora_magnitude_vector": "a DoRA (it rescales whole weights)",
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "lora_mid": "a LoRA with a third matrix (CP decomposition)",
    "oft_": "an OFT adapter",
    "diff_b": "a LoRA that changes biases",
    "lora_B.bias": "a LoRA that changes biases",
}
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
#: the entry of a file's metadata in which diffusers keeps peft's settings
_METADATA = "lora_adapter_metadata"


class Change(NamedTuple):
    """The change of one weight, ``up @ down``.

    ``down`` is (r, in), ``up`` (out, r) with the file's own scale, alpha / r. Both are float32, on the host. Those of
    a convolution have its kernel behind, (r, in, kh, kw), and ``up`` stays (out, r).
    """

    down: torch.Tensor
    up: torch.Tensor

    @property
    def rank(self) -> int:
        """The rank r."""
        return len(self.down)


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA on the host.

    Attributes:
        name: its alias, for errors.
        digest: the sha256 of its file.
        parts: by part of the model (``unet``, ``transformer``, ``text_encoder`` ...) the change of each module by name.
    """

    name: str
    digest: str
    parts: Mapping[str, Mapping[str, Change]]

    @cached_property
    def size_bytes(self) -> int:
        """The bytes of all tensors."""
        return sum(each.down.nbytes + each.up.nbytes for changes in self.parts.values() for each in changes.values())

    @cached_property
    def rank(self) -> int:
        """The greatest rank of a change."""
        return max(change.rank for changes in self.parts.values() for change in changes.values())


def read_lora(path: Path, *, name: str, pipeline: str, config: Any) -> Lora:
    """Return the LoRA of a file.

    Args:
        path: a safetensors file.
        name: its alias, for errors.
        pipeline: the diffusers pipeline of the model, one of ``LOADERS``.
        config: the config of its denoising model.

    Raises:
        JobError: code ``adapter_invalid``: it cannot be read, or is of a kind that is not supported.
    """
    try:
        body = path.read_bytes()
        tensors = load(body)
        length = int.from_bytes(body[:8], "little")
        metadata = json.loads(body[8 : 8 + length]).get("__metadata__") or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise _invalid(name, f"cannot be read: {error}") from error
    for part, kind in _OTHERS.items():
        if any(part in key for key in tensors):
            raise _invalid(name, f"is {kind}, which is not supported; convert it to a plain LoRA")
    try:
        converted, alphas = _convert(tensors, LOADERS[pipeline], config)
        scales = _Scales(alphas, metadata)
        parts = {part: dict(_changes(part, found, scales)) for part, found in _by_part(converted).items()}
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError, AttributeError) as error:
        # diffusers' converters raise any of these for names that they do not know
        raise _invalid(name, f"has tensors that diffusers' {LOADERS[pipeline]} does not read: {error}") from error
    parts = {part: changes for part, changes in parts.items() if changes}
    if not parts:
        raise _invalid(name, "changes no weight")
    return Lora(name, hashlib.sha256(body).hexdigest(), parts)


def _convert(tensors: dict[str, torch.Tensor], loader: str, config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors by diffusers' names, and the alphas that are not in them yet."""
    from diffusers.loaders import lora_pipeline

    cls = getattr(lora_pipeline, loader)
    options: dict[str, Any] = {"return_alphas": True} if "Flux" in loader else {}
    if "StableDiffusion" in loader:
        options["unet_config"] = config
    found = cls.lora_state_dict(dict(tensors), **options)
    return found if isinstance(found, tuple) else (found, {})


def _by_part(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = tensor
    return parts


class _Scales:
    """Alphas, as the file's tensors or peft's metadata have them. A change without one has its rank."""

    def __init__(self, alphas: Mapping[str, Any] | None, metadata: Mapping[str, str]) -> None:
        self._alphas = {key: float(value) for key, value in (alphas or {}).items()}
        text = metadata.get(_METADATA)
        self._peft: dict[str, Any] = json.loads(text) if text and not self._alphas else {}

    def alpha(self, key: str) -> float | None:
        """Return the alpha of a tensor by its name before the last conversion.

        diffusers names it after the tensor or, for most modules, after the module.
        """
        module = key.partition(".lora.")[0].partition(".lora_A.")[0]
        return self._alphas.get(f"{key}.alpha", self._alphas.get(f"{module}.alpha"))

    def scale(self, part: str, module: str, rank: int, alpha: float | None) -> float:
        """Return alpha / rank of a change, or alpha / sqrt(rank) if the file's metadata has ``use_rslora``."""
        if alpha is None:
            pattern = self._peft.get(f"{part}.alpha_pattern") or {}
            alpha = float(pattern.get(module, self._peft.get(f"{part}.lora_alpha", rank)))
        return alpha / (rank**0.5 if self._peft.get(f"{part}.use_rslora") else rank)


def _changes(part: str, tensors: dict[str, torch.Tensor], scales: _Scales) -> Iterator[tuple[str, Change]]:
    """Yield the change of each module of a part."""
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    # the converters rename only, so each tensor takes its alpha along
    found: dict[str, Any] = {key: (tensor, scales.alpha(f"{part}.{key}")) for key, tensor in tensors.items()}
    if part.startswith("text_encoder"):
        found = convert_state_dict_to_peft(convert_state_dict_to_diffusers(found))
    elif not any(".lora_A." in key for key in found):
        found = convert_unet_state_dict_to_peft(found)
    for key, (down, alpha) in sorted(found.items()):
        if not key.endswith(_DOWN):
            if not key.endswith(_UP):
                raise ValueError(f"{part}.{key[:80]}")
            continue
        module = key.removesuffix(_DOWN)
        up = found[module + _UP][0].float().flatten(1) * scales.scale(part, module, len(down), alpha)
        if up.shape[1] != len(down):
            raise ValueError(f"{part}.{module[:80]}: ranks {len(down)} and {up.shape[1]}")
        # some text encoders of transformers have no level of this name
        own = module.removeprefix("text_model.") if part.startswith("text_encoder") else module
        yield own, Change(down.float(), up)


def _invalid(name: str, problem: str) -> JobError:
    return JobError("adapter_invalid", f"lora {name!r} {problem}")

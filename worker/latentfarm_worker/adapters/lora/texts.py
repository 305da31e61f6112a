"""Prompts encoded with the changes that LoRAs make to text encoders.

Prompts with the same LoRAs are encoded together, by encoders whose weights are changed meanwhile: W + scale * up @
down, in float32. So a prompt's numbers do not depend on prompts with other LoRAs, and plain prompts are encoded by the
weights as they were loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from latentfarm.errors import JobError
from latentfarm_worker.adapters.lora.files import Change, Lora
from latentfarm_worker.adapters.lora.targets import find_place
from latentfarm_worker.text_encoders.prompt import Prompt, PromptLora, Tensors

#: the level that some text encoders of transformers have above their layers
_TEXT_MODEL = "text_model."
#: the changes of each module by text encoder
TextChanges = Mapping[str, Mapping[str, Change]]


def text_changes(lora: Lora, denoiser: str, encoders: Mapping[str, torch.nn.Module]) -> TextChanges:
    """Return what a LoRA changes of the text encoders, by the names of their modules.

    Raises:
        JobError: code ``adapter_mismatch``: the model lacks an encoder, or a weight of it.
    """
    found: dict[str, dict[str, Change]] = {}
    for part, changes in lora.parts.items():
        if part == denoiser:
            continue
        if part not in encoders:
            raise JobError(
                "adapter_mismatch",
                f"lora {lora.name!r} changes {part}, which this model lacks; write one of this model's",
            )
        encoder = encoders[part]
        level = _TEXT_MODEL if hasattr(encoder, _TEXT_MODEL[:-1]) else ""
        for name, change in changes.items():
            own = name if hasattr(encoder, name.partition(".")[0]) else level + name
            find_place(encoder, own, change, lora=lora.name)
            found.setdefault(part, {})[own] = change
    return found


class TextLoras:
    """Encodes prompts with their LoRAs. It belongs to the thread that calls the text encoders.

    Args:
        encoders: the text encoders by part.
        changes_of: returns what the LoRA of a digest changes.
    """

    def __init__(self, encoders: Mapping[str, torch.nn.Module], changes_of: Callable[[str], TextChanges]) -> None:
        self._encoders, self._changes_of = encoders, changes_of

    def encode(
        self, encode: Callable[[Sequence[Prompt]], Sequence[Tensors]], prompts: Sequence[Prompt]
    ) -> list[Tensors]:
        """Return the conditioning of each prompt by a family's ``encode``."""
        groups: dict[tuple[PromptLora, ...], list[int]] = {}
        for at, prompt in enumerate(prompts):
            groups.setdefault(prompt.loras, []).append(at)
        found: dict[int, Tensors] = {}
        for loras, places in groups.items():
            with self._changed(loras):
                found.update(zip(places, encode([prompts[at] for at in places]), strict=True))
        return [found[at] for at in range(len(prompts))]

    @contextmanager
    def _changed(self, loras: Sequence[PromptLora]) -> Iterator[None]:
        """Change the encoders' weights, and put them back."""
        changes: dict[tuple[str, str], list[tuple[Change, float]]] = {}
        for lora in loras:
            for part, found in self._changes_of(lora.digest).items():
                for name, change in found.items():
                    changes.setdefault((part, name), []).append((change, lora.scale))
        before: list[tuple[Any, torch.nn.Parameter]] = []
        try:
            for (part, name), each in changes.items():
                module = self._encoders[part].get_submodule(name)
                weight = module._parameters["weight"]  # noqa: SLF001 (the setter of a module costs more)
                assert weight is not None  # noqa: S101 (``text_changes`` has checked its shape)
                before.append((module, weight))
                module._parameters["weight"] = _sum(weight, each)  # noqa: SLF001
            yield
        finally:
            for module, weight in before:
                module._parameters["weight"] = weight  # noqa: SLF001


def _sum(weight: torch.nn.Parameter, changes: Sequence[tuple[Change, float]]) -> torch.nn.Parameter:
    """Return a weight with its changes."""
    changed = weight.detach().float()
    for change, scale in changes:
        up, down = change.up.to(weight.device), change.down.flatten(1).to(weight.device)
        changed = torch.addmm(changed, up, down, alpha=scale)
    return torch.nn.Parameter(changed.to(weight.dtype), requires_grad=False)

"""The loaded models of one worker: as many as fit have their weights on the device; the others' have left it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch

from latentfarm.errors import ModelError
from latentfarm_worker import device_errors
from latentfarm_worker.model_pool.part_weights import PartWeights, digest_of
from latentfarm_worker.models import Family
from latentfarm_worker.models.image_encoder import WeightsGuard

log = logging.getLogger(__name__)

_GIGABYTE = 1_000_000_000
#: loads a family again; the modules by part need not be loaded
Load = Callable[[Mapping[str, torch.nn.Module]], Family]


@dataclass
class _Model:
    """A model, its weights by part, and what loads it again; ``used`` rises with each use."""

    family: Family
    load: Load
    on_leave: Callable[[], object] = lambda: None
    parts: dict[str, PartWeights] = field(default_factory=dict)
    used: int = 0

    @property
    def here(self) -> bool:
        return all(part.here for part in self.parts.values())

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


class ModelPool:
    """Models by alias. It belongs to the thread that calls the device.

    Weights of text encoders and VAEs that have the same bytes are there once. A model that is larger than the budget is
    alone on the device.

    Args:
        budget: bytes of weights on the device.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._models: dict[str, _Model] = {}
        #: text encoders and VAEs by the digest of their tensors
        self._known: dict[str, PartWeights] = {}
        self._uses = 0

    @property
    def here(self) -> list[str]:
        """The models whose weights are on the device, the least recently used one first."""
        found = sorted(self._models.items(), key=lambda item: item[1].used)
        return [alias for alias, model in found if model.here]

    @property
    def bytes_here(self) -> int:
        """The bytes of weights on the device; those of several models count once."""
        parts = {id(part): part for model in self._models.values() for part in model.parts.values()}
        return sum(part.nbytes for part in parts.values() if part.here)

    def add(self, alias: str, load: Load) -> Family:
        """Load a model for the first time, and return it.

        Its size is not known before. Room is made for weights as large as the largest model's so far.

        Args:
            alias: its alias.
            load: loads it; called again if its weights were dropped.

        Raises:
            ModelError: it cannot be used.
        """
        self._make_room(max((model.nbytes for model in self._models.values()), default=0))
        try:
            family = load({})
        except Exception as error:
            if not (device_errors.is_out_of_memory(error) and self.here):
                raise
            self._leave(self.here)
            family = load({})
        model = _Model(family, load)
        for part, module in family.modules.items():
            shared = part == "vae" or part in family.encoder_parts
            guard = family.vae_guard if part == "vae" else None
            model.parts[part] = self._weights_of(module, family.device, f"{alias}/{part}", guard, shared=shared)
        self._models[alias] = model
        self._touch(model)
        self._make_room(0, keep=model)
        return family

    def when_leaving(self, alias: str, on_leave: Callable[[], object]) -> None:
        """Call ``on_leave`` each time the weights of a model have left: what holds their addresses is of no use."""
        self._models[alias].on_leave = on_leave

    def use(self, alias: str) -> float:
        """Have the weights of a model on the device; return the seconds that it took, 0 if they were there.

        Raises:
            ModelError: they cannot be loaded again, or the files have changed.
        """
        model = self._models[alias]
        self._touch(model)
        if model.here:
            return 0.0
        began = time.monotonic()
        missing = sum(part.nbytes for part in model.parts.values() if not part.here)
        left = self._make_room(missing, keep=model)
        try:
            self._come_back(model)
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
            # images took more than their share
            left += self._leave([other for other in self.here if other != alias], keep=model)
            self._come_back(model)
        seconds = time.monotonic() - began
        log.info(
            "model %s is on the device after %.1f s%s; weights there: %.2f of %.2f GB",
            alias,
            seconds,
            f" in place of {', '.join(left)}" if left else "",
            self.bytes_here / _GIGABYTE,
            self.budget / _GIGABYTE,
        )
        return seconds

    def _touch(self, model: _Model) -> None:
        self._uses += 1
        model.used = self._uses

    def _weights_of(
        self, module: torch.nn.Module, device: torch.device, owner: str, guard: WeightsGuard | None, *, shared: bool
    ) -> PartWeights:
        if not shared:
            return PartWeights(module, device, owner)
        digest = digest_of(module)
        known = self._known.get(digest)
        if known is None:
            known = self._known[digest] = PartWeights(module, device, owner, guard)
        else:
            known.share(module, guard)
            log.info("%s has the bytes of %s: %.3f GB are there once", owner, known.owner, known.nbytes / _GIGABYTE)
        return known

    # -- leave and come back ---------------------------------------------------------------------------------

    def _make_room(self, nbytes: int, keep: _Model | None = None) -> list[str]:
        """Let the least recently used models leave until so many bytes more fit; return their aliases.

        What ``keep`` has on the device stays.
        """
        left: list[str] = []
        while self.bytes_here + nbytes > self.budget:
            others = [alias for alias in self.here if self._models[alias] is not keep]
            if not others:
                break
            left += self._leave(others[:1], keep=keep)
        return left

    def _leave(self, aliases: Collection[str], keep: _Model | None = None) -> list[str]:
        """Let models leave the device, but for the parts that others, or ``keep``, have there; return their aliases."""
        leaving = [self._models[alias] for alias in aliases]
        staying = [model for alias, model in self._models.items() if alias in self.here and alias not in aliases]
        used = {id(part) for model in (*staying, *([keep] if keep else [])) for part in model.parts.values()}
        for model in leaving:
            for part in model.parts.values():
                if part.here and id(part) not in used:
                    part.leave()
            model.on_leave()
        if any(model.family.device.type == "cuda" for model in leaving):
            torch.cuda.empty_cache()
        return [*aliases]

    def _come_back(self, model: _Model) -> None:
        missing = {name: part for name, part in model.parts.items() if not part.here}
        loaded: Mapping[str, torch.nn.Module] = {}
        if any(part.dropped for part in missing.values()):
            there = {name: model.family.modules[name] for name in model.parts if name not in missing}
            again = model.load(there)
            if again.model_digest != model.family.model_digest:
                raise ModelError(f"{model.family.name}: its files have changed since the start; restart the worker")
            loaded = again.modules
        for name, part in missing.items():
            part.come_back(loaded[name] if part.dropped else None)

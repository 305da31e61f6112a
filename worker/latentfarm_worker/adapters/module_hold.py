"""What an image holds of adapters with weights of their own: ControlNets, IP-Adapters and refiners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence

from latentfarm_worker.adapters.catalogue import Adapter
from latentfarm_worker.adapters.module_cache import LoadedModule, ModuleCache
from latentfarm_worker.text_encoders.prompt import PromptLora, Tensors


class ModuleHold(ABC):
    """The adapters of one kind of one image, an ``adapters.base.Hold``.

    Args:
        cache: the adapters in memory.

    Attributes:
        adapters: their files.
        draws: noises that are drawn from the job's generator before all others.
        text_loras: none.
    """

    text_loras: tuple[PromptLora, ...] = ()

    def __init__(self, cache: ModuleCache) -> None:
        self._cache = cache
        self._modules: list[LoadedModule] = []
        self.adapters: list[Adapter] = []
        self.draws = 0

    def reserve(self) -> bool:
        """Return that the image may begin: if there is no room, ``begin`` raises."""
        return True

    def release(self) -> None:  # noqa: B027 (it has nothing to do)
        """Release nothing, as ``reserve`` keeps no room."""

    def at(self, evaluation: int) -> Hashable:
        """Return what the adapters add at an evaluation: the same in all of them, unless a class overrides it."""
        del evaluation
        return None

    def begin(self, rows: int) -> Sequence[Tensors]:
        """Have the adapters on the device; return the conditioning of the rows.

        Raises:
            JobError: code ``oom``.
        """
        begun: list[LoadedModule] = []
        try:
            for each in self._modules:
                self._cache.begin(each)
                begun.append(each)
            return [self.conditioning(row) for row in range(rows)]
        except BaseException:
            for each in begun:
                self._cache.end(each)
            raise

    def end(self) -> None:
        """Let the adapters leave when others need their room."""
        for each in self._modules:
            self._cache.end(each)

    @abstractmethod
    def conditioning(self, row: int) -> Tensors:
        """Return the conditioning of the prompt, row 0, or of the negative prompt."""

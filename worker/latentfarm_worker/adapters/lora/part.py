"""The LoRAs of one model: their holds, and their calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch

from latentfarm.adapter_kind import AdapterKind
from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm.step_counts import first_evaluation
from latentfarm_worker.adapters.catalogue import Adapter, Catalogue
from latentfarm_worker.adapters.lora.applied import ChangedModules
from latentfarm_worker.adapters.lora.files import LOADERS, read_lora
from latentfarm_worker.adapters.lora.pages import PagedLora, PageStacks, ScaleFrom, places_of_row, to_pages
from latentfarm_worker.adapters.lora.texts import TextChanges, TextLoras, text_changes
from latentfarm_worker.host_copy import send
from latentfarm_worker.text_encoders.prompt import Prompt, PromptLora, Tensors

if TYPE_CHECKING:
    from latentfarm_worker.engine.job_inputs import JobInputs
    from latentfarm_worker.engine.sampling_plan import SamplingPlan

#: before the count of a row's pages. Rows with other counts have other names, so they are in other calls
PAGES, SCALES = "lora_pages:", "lora_scales:"
#: pages on the device: 32 LoRAs of rank 16
_PAGES = 64
#: bytes of LoRAs that stay in host memory
_MAX_BYTES = 2 * 1024**3


@dataclass(frozen=True, eq=False)
class LoadedLora:
    """A LoRA on the host: the pages of the denoising model, and the changes of the text encoders."""

    pages: PagedLora
    texts: TextChanges

    @property
    def size_bytes(self) -> int:
        """The bytes of all tensors."""
        changes = (change for found in self.texts.values() for change in found.values())
        return self.pages.size_bytes + sum(change.down.nbytes + change.up.nbytes for change in changes)


class LoraHold:
    """The LoRAs of one image, an ``adapters.base.Hold``.

    Attributes:
        adapters: their files.
        text_loras: those that change text encoders, with their scales; none that is not on in all steps.
        draws: none.
    """

    draws = 0

    def __init__(self, part: Loras, uses: Sequence[tuple[Adapter, LoadedLora, ScaleFrom]]) -> None:
        self._part = part
        self._uses = [(lora, scale) for _, lora, scale in uses]
        self._pages = [lora.pages for lora, _ in self._uses if lora.pages.count]
        self._reserved = False
        self.adapters = tuple(dict.fromkeys(adapter for adapter, _, _ in uses))
        self.text_loras = tuple(
            PromptLora(lora.pages.digest, at.scale) for lora, at in self._uses if lora.texts and not at.first
        )

    def reserve(self) -> bool:
        """Keep places on the device for the LoRAs; return False if other images have too many of them now."""
        self._reserved = self._reserved or self._part.stacks.reserve(self._pages)
        return self._reserved

    def at(self, evaluation: int) -> tuple[float, ...]:
        """Return the scale of each LoRA at an evaluation, 0 before its first one."""
        return tuple(at.scale if evaluation >= at.first else 0.0 for _, at in self._uses)

    def begin(self, rows: int) -> Sequence[Tensors]:
        """Have the LoRAs on the device; return the conditioning of the rows: pages (K,), and their scales (K, 2).

        Raises:
            JobError: code ``oom``: the device has no memory for them.
        """
        if not self.reserve():
            raise JobError("oom", "the LoRAs of other images fill the device; render the job again")
        if not self._pages:
            return [{}] * rows
        pages: list[int] = []
        scales: list[ScaleFrom] = []
        try:
            for lora, scale in self._uses:
                pages += self._part.stacks.write(lora.pages) if lora.pages.count else ()
                scales += [scale] * lora.pages.count
        except torch.OutOfMemoryError as error:
            raise JobError("oom", f"the device has no memory for the LoRAs {self._names}; use fewer") from error
        device = self._part.device
        numbers, factors = (send(tensor, device) for tensor in places_of_row(pages, scales))
        return [{f"{PAGES}{len(numbers)}": numbers, f"{SCALES}{len(numbers)}": factors}] * rows

    def end(self) -> None:
        """Let the LoRAs leave when others need their places."""
        self.release()

    def release(self) -> None:
        """Release the places of ``reserve``."""
        if self._reserved:
            self._reserved = False
            self._part.stacks.release(self._pages)

    @property
    def _names(self) -> str:
        return ", ".join(adapter.alias for adapter in self.adapters)


class Loras:
    """The LoRAs of one model, an ``adapters.base.AdapterPart``.

    Args:
        model: the denoising model.
        part: its name: ``unet`` or ``transformer``.
        encoders: the text encoders by part.
        pipeline: the diffusers pipeline of the model.
        dtype, device: those of the denoising model.
        pages: pages on the device.

    Attributes:
        catalogue: the adapters by alias.
        stacks: the pages on the device.
        texts: encodes prompts with LoRAs.
    """

    def __init__(
        self,
        model: Any,
        *,
        part: str,
        encoders: Mapping[str, torch.nn.Module],
        pipeline: str,
        dtype: torch.dtype,
        device: torch.device,
        pages: int = _PAGES,
    ) -> None:
        self._model, self._part, self._encoders = model, part, encoders
        self._pipeline, self._dtype = pipeline, dtype
        self.device = device
        self.catalogue = Catalogue()
        self.stacks = PageStacks(pages=pages, device=self.device, dtype=dtype)
        self.texts = TextLoras(encoders, lambda digest: self._alive[digest].texts)
        self._modules = ChangedModules(model)
        self._lock = Lock()
        #: by digest: those that images use, and those that were used last
        self._alive: WeakValueDictionary[str, LoadedLora] = WeakValueDictionary()
        self._kept: OrderedDict[str, LoadedLora] = OrderedDict()

    def prepare(self, job: Job, inputs: JobInputs, plan: SamplingPlan) -> LoraHold | None:
        """Load the LoRAs of a job to the host; None if it has none. Thread-safe.

        Raises:
            JobError: code ``adapter_unknown``, ``adapter_invalid``, ``adapter_mismatch``, also for a LoRA with a start
                that changes text encoders only, or ``adapter_limit`` for more ranks than the device has places for.
        """
        del inputs
        if not job.loras:
            return None
        if self._pipeline not in LOADERS:
            text = f"loras: the models of {self._pipeline} take none; remove loras, or name another model"
            raise JobError("adapter_mismatch", text)
        uses = []
        for use in job.loras:
            adapter = self.catalogue.get(AdapterKind.LORA, use.name)
            lora, first = self._load(adapter), first_evaluation(use.start, plan.num_evaluations)
            if first and not lora.pages.count:
                raise JobError(
                    "adapter_mismatch",
                    f"lora {adapter.alias!r} changes text encoders only, and text is encoded before the first step; "
                    f"remove its start {use.start:g}",
                )
            uses.append((adapter, lora, ScaleFrom(use.scale, first)))
        pages = {lora.pages.digest: lora.pages.count for _, lora, _ in uses}
        if sum(pages.values()) > self.stacks.pages:
            raise JobError(
                "adapter_limit",
                f"loras: their ranks are {8 * sum(pages.values())} together; keep to {8 * self.stacks.pages}",
            )
        return LoraHold(self, uses)

    @contextmanager
    def applied(self, conditioning: Tensors) -> Iterator[None]:
        """Change the model for a call whose rows have LoRAs."""
        name = next(name for name in conditioning if name.startswith(PAGES))
        count = name.removeprefix(PAGES)
        scales, first = conditioning[SCALES + count].unbind(dim=2)
        on = conditioning["step_index"][:, None] >= first
        rows = self.stacks.gather(conditioning[name], torch.where(on, scales, 0.0))
        with self._modules.use(rows):
            yield

    def encode(
        self, encode: Callable[[Sequence[Prompt]], Sequence[Tensors]], prompts: Sequence[Prompt]
    ) -> Sequence[Tensors]:
        """Return the conditioning of prompts by a family's ``encode``, with the LoRAs of each."""
        return self.texts.encode(encode, prompts)

    def _load(self, adapter: Adapter) -> LoadedLora:
        with self._lock:
            found = self._alive.get(adapter.digest)
            if found is None:
                found = self._read(adapter)
            self._alive[adapter.digest] = self._kept[adapter.digest] = found
            self._kept.move_to_end(adapter.digest)
            total = sum(each.size_bytes for each in self._kept.values())
            while total > _MAX_BYTES and len(self._kept) > 1:
                total -= self._kept.popitem(last=False)[1].size_bytes
        return found

    def _read(self, adapter: Adapter) -> LoadedLora:
        lora = read_lora(adapter.path, name=adapter.alias, pipeline=self._pipeline, config=self._model.config)
        if lora.digest != adapter.digest:
            raise JobError(
                "adapter_invalid", f"lora {adapter.alias!r} was changed while it was read; submit the job again"
            )
        return LoadedLora(
            to_pages(lora, self._part, self._model, self._dtype), text_changes(lora, self._part, self._encoders)
        )


def has_loras(conditioning: Tensors) -> bool:
    """Return whether the rows of a call have LoRAs."""
    return any(name.startswith(PAGES) for name in conditioning)

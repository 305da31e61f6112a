"""LoRAs in pages of one rank, on the host and in stacks on the device.

A LoRA of rank r is ceil(r / PAGE_RANK) pages; a job that uses several has the pages of all. So all LoRAs fit into
stacks of one shape, and a row's numbers depend on its own pages, in their order, and not on the ranks of others: a
longer sum with zeros at its end may be added up in another order. Page 0 is all zeros.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from latentfarm_worker.adapters.lora.files import Lora
from latentfarm_worker.adapters.lora.targets import Place, Target, find_place
from latentfarm_worker.host_copy import send

#: the ranks of one page: LoRAs of 4 to 16 are the most frequent
PAGE_RANK = 8


class ScaleFrom(NamedTuple):
    """The scale of a page, and the first evaluation at which it is on."""

    scale: float
    first: float = 0.0


class Pages(NamedTuple):
    """The pages of one module, or the changes of its rows.

    ``down`` is (pages, parts * PAGE_RANK, inputs), ``up`` (pages, parts * PAGE_RANK, outputs).
    """

    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True, eq=False)
class PagedLora:
    """A LoRA's changes of the denoising model, on the host, in the model's dtype.

    Attributes:
        digest: the sha256 of its file.
        count: the pages of each module; 0 if it changes text encoders only.
        modules: the pages by module.
    """

    digest: str
    count: int
    modules: Mapping[Target, Pages]

    @cached_property
    def size_bytes(self) -> int:
        """The bytes of all pages."""
        return sum(each.down.nbytes + each.up.nbytes for each in self.modules.values())


def to_pages(lora: Lora, part: str, model: torch.nn.Module, dtype: torch.dtype) -> PagedLora:
    """Return a LoRA's changes of a part of the model.

    Raises:
        JobError: code ``adapter_mismatch``.
    """
    changes = lora.parts.get(part, {})
    count = -(-max((change.rank for change in changes.values()), default=0) // PAGE_RANK)
    modules: dict[Target, Pages] = {}
    for name, change in changes.items():
        place = find_place(model, name, change, lora=lora.name)
        target = place.target
        if target not in modules:
            rows = target.parts * PAGE_RANK
            modules[target] = Pages(
                torch.zeros(count, rows, target.inputs, dtype=dtype),
                torch.zeros(count, rows, target.outputs, dtype=dtype),
            )
        _write(modules[target], place, change.down.flatten(1), change.up.T)
    return PagedLora(lora.digest, count, modules)


def _write(pages: Pages, place: Place, down: torch.Tensor, up: torch.Tensor) -> None:
    """Write a change, (r, inputs) and (r, outputs of its part), into the pages of its module."""
    first = place.part * PAGE_RANK
    for page, at in enumerate(range(0, len(down), PAGE_RANK)):
        last = first + len(down[at : at + PAGE_RANK])
        pages.down[page, first:last] = down[at : at + PAGE_RANK]
        pages.up[page, first:last, place.begin : place.end] = up[at : at + PAGE_RANK]


@dataclass
class _Stack:
    """The pages of all modules of one shape: ``down`` (modules, pages, rows, inputs), ``up`` likewise."""

    down: torch.Tensor
    up: torch.Tensor
    targets: list[Target] = field(default_factory=list)


class PageStacks:
    """The pages on the device. It belongs to the engine's thread.

    A page has a place in the stacks of all modules that any LoRA here has changed so far; where its own LoRA changes
    nothing it is zero.

    Args:
        pages: pages of all LoRAs that are on the device, without the page of zeros.
        device: the device.
        dtype: the model's dtype.

    Attributes:
        version: it rises when tensors move: what has kept their addresses is invalid then.
    """

    def __init__(self, *, pages: int, device: torch.device, dtype: torch.dtype) -> None:
        self.pages = pages
        self.version = 0
        self._device, self._dtype = device, dtype
        self._stacks: dict[tuple[int, int, int], _Stack] = {}
        self._targets: set[Target] = set()
        self._free = list(range(pages, 0, -1))
        #: the LoRAs on the device by digest, those used longest ago first
        self._places: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._pins: dict[str, int] = {}
        self._written: set[str] = set()

    def reserve(self, loras: Iterable[PagedLora]) -> bool:
        """Pin LoRAs, and give places to those that have none. Return False, and change nothing, if there is no room."""
        wanted = [*loras]
        missing = {lora.digest: lora.count for lora in wanted if lora.digest not in self._places}
        keep = {lora.digest for lora in wanted}
        idle = [digest for digest in self._places if not self._pins.get(digest) and digest not in keep]
        room = len(self._free) + sum(len(self._places[digest]) for digest in idle)
        if sum(missing.values()) > room:
            return False
        for digest, count in missing.items():
            while len(self._free) < count:
                self._drop(idle.pop(0))
            self._places[digest] = tuple(self._free.pop() for _ in range(count))
        for lora in wanted:
            self._pins[lora.digest] = self._pins.get(lora.digest, 0) + 1
            self._places.move_to_end(lora.digest)
        return True

    def release(self, loras: Iterable[PagedLora]) -> None:
        """Unpin LoRAs that ``reserve`` has pinned. They stay until their places are needed."""
        for lora in loras:
            self._pins[lora.digest] -= 1

    def write(self, lora: PagedLora) -> tuple[int, ...]:
        """Move a LoRA to its places if it is not there, and return them.

        Raises:
            torch.OutOfMemoryError: the device has no memory for the stacks.
        """
        places = self._places[lora.digest]
        if lora.digest in self._written:
            return places
        self._extend(target for target in lora.modules if target not in self._targets)
        for stack in self._stacks.values():
            for number, place in enumerate(places):
                stack.down[:, place].zero_()
                stack.up[:, place].zero_()
                found = [(at, lora.modules[each]) for at, each in enumerate(stack.targets) if each in lora.modules]
                if not found:
                    continue
                at = send(torch.tensor([at for at, _ in found]), self._device)
                stack.down[at, place] = send(torch.stack([pages.down[number] for _, pages in found]), self._device)
                stack.up[at, place] = send(torch.stack([pages.up[number] for _, pages in found]), self._device)
        self._written.add(lora.digest)
        return places

    def gather(self, pages: torch.Tensor, scales: torch.Tensor) -> dict[str, Pages]:
        """Return the changes of each row by module: ``down`` (R, K * rows, inputs), ``up`` (R, K * rows, outputs).

        Args:
            pages: the pages of each row, int64 (R, K).
            scales: their scales, float32 (R, K).
        """
        found: dict[str, Pages] = {}
        rows, places = len(pages), pages.flatten()
        factors = scales.to(self._dtype).view(1, -1, 1, 1)
        for stack in self._stacks.values():
            down = stack.down.index_select(1, places).mul_(factors)
            up = stack.up.index_select(1, places)
            downs = down.view(len(down), rows, -1, down.shape[-1]).unbind()
            ups = up.view(len(up), rows, -1, up.shape[-1]).unbind()
            found.update(
                (target.name, Pages(*each))
                for target, each in zip(stack.targets, zip(downs, ups, strict=True), strict=True)
            )
        return found

    def _drop(self, digest: str) -> None:
        self._free.extend(self._places.pop(digest))
        self._pins.pop(digest, None)
        self._written.discard(digest)

    def _extend(self, targets: Iterable[Target]) -> None:
        """Give modules places in the stacks of their shape."""
        new: dict[tuple[int, int, int], list[Target]] = {}
        for target in targets:
            new.setdefault((target.parts, target.inputs, target.outputs), []).append(target)
        for (parts, inputs, outputs), found in new.items():
            shape = (len(found), self.pages + 1, parts * PAGE_RANK)
            down, up = (
                torch.zeros((*shape, size), dtype=self._dtype, device=self._device) for size in (inputs, outputs)
            )
            before = self._stacks.get((parts, inputs, outputs))
            if before is not None:
                down, up = torch.cat([before.down, down]), torch.cat([before.up, up])
            known = before.targets if before is not None else []
            self._stacks[parts, inputs, outputs] = _Stack(down, up, [*known, *found])
            self._targets.update(found)
            self.version += 1


def padded_count(pages: int) -> int:
    """Return the pages with which a row is computed: the next power of two."""
    return 1 << max(0, pages - 1).bit_length()


def places_of_row(pages: Sequence[int], scales: Sequence[ScaleFrom]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pages of a row, int64 (K,), and their ``ScaleFrom``, float32 (K, 2), padded with the page of zeros."""
    missing = padded_count(len(pages)) - len(pages)
    return torch.tensor([*pages, *[0] * missing]), torch.tensor([*scales, *[ScaleFrom(0.0)] * missing])

"""Where a model's text encoders are, and where they compute: no step of denoising needs their 0.2 to 24 GB."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch

from latentfarm_worker.host_copy import send
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors

#: ``resident``: on the device. ``offload``: on the host, and on the device while prompts are encoded. ``cpu``: on the
#: host, and computing there
Placement = Literal["resident", "offload", "cpu"]

#: share of a GPU's memory that must be left for the images beside resident encoders, and for a moment beside moved ones
_FREE_SHARE, _FREE_SHARE_WHILE_MOVED = 1 / 4, 1 / 16


def choose_placement(encoder_bytes: int, *, free: int, total: int) -> Placement:
    """Return ``resident`` if the encoders leave a quarter of a GPU's memory free, ``offload`` if a 16th, else ``cpu``.

    Args:
        encoder_bytes: bytes of all text encoders.
        free: bytes of device memory that are free once the other parts of the model are there.
        total: bytes of device memory.
    """
    left = free - encoder_bytes
    if left >= _FREE_SHARE * total:
        return "resident"
    return "offload" if left >= _FREE_SHARE_WHILE_MOVED * total else "cpu"


def bytes_of(modules: Sequence[torch.nn.Module]) -> int:
    """Return the bytes of all parameters and buffers; those that are shared count once."""
    return sum({id(tensor): tensor.nbytes for _, _, tensor in _owners_of(modules)}.values())


class EncoderPlacement:
    """The place of a model's text encoders. It belongs to the thread that calls the device.

    Args:
        modules: the text encoders, which are on the host.
        device: the device of the other parts of the model.
        placement: where they are and compute. If the device is a CPU, all are the same.
    """

    def __init__(
        self, modules: Sequence[torch.nn.Module] = (), device: torch.device | str = "cpu", placement: Placement = "cpu"
    ) -> None:
        self._modules = tuple(modules)
        self._device = torch.device(device)
        self.placement: Placement = "resident" if self._device.type == "cpu" else placement
        self._ready = False
        if self.placement == "resident":
            for module in self._modules:
                module.to(self._device)

    @property
    def is_resident(self) -> bool:
        """Whether encoding a prompt moves nothing, and computes on the model's device."""
        return self.placement == "resident"

    @property
    def model_device(self) -> torch.device:
        """Return the device of the other parts of the model."""
        return self._device

    @property
    def device(self) -> torch.device:
        """Return the device on which the encoders compute."""
        return torch.device("cpu") if self.placement == "cpu" else self._device

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Keep the encoders where they compute; within it, ``encode`` moves nothing more.

        Their weights on the host stay, so nothing is copied back.
        """
        if self.placement != "offload" or self._ready:
            yield
            return
        owners = [*_owners_of(self._modules)]
        self._ready = True
        try:
            moved = {id(tensor): _moved(tensor, self._device) for _, _, tensor in owners}
            for owner, name, tensor in owners:
                owner[name] = moved[id(tensor)]
            yield
        finally:
            # also if the device's memory ran out half way
            for owner, name, tensor in owners:
                owner[name] = tensor
            self._ready = False

    def encode(
        self, encode: Callable[[Sequence[Prompt]], Sequence[Tensors]], prompts: Sequence[Prompt]
    ) -> list[Tensors]:
        """Return the conditioning of each prompt on the model's device, by a family's ``encode``."""
        with self.ready():
            texts = encode(prompts)
        if self.placement != "cpu":
            return [*texts]
        return [{name: self._sent(tensor) for name, tensor in text.items()} for text in texts]

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the model's device, where a family may have made it already."""
        return send(tensor, self._device) if tensor.device.type == "cpu" else tensor


def _owners_of(
    modules: Sequence[torch.nn.Module],
) -> Iterator[tuple[dict[str, torch.Tensor | None], str, torch.Tensor]]:
    """Yield each parameter and buffer with the dict that holds it; a shared one once for each of its places."""
    for module in modules:
        for part in module.modules():
            for owner in (part._parameters, part._buffers):  # noqa: SLF001 (as torch.nn.Module.to does)
                for name, tensor in owner.items():
                    if tensor is not None:
                        yield owner, name, tensor  # type: ignore[misc]


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy on the device, a parameter if the tensor is one."""
    copy = tensor.detach().to(device, copy=True)
    return torch.nn.Parameter(copy, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else copy

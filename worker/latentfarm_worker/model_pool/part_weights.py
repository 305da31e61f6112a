"""The weights of a model's part, which leave the device and come back while its module stays.

So a family, its engine and compiled code stay as they are. Models whose text encoder or VAE has the same bytes have one
copy of its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from latentfarm_worker.models.image_encoder import WeightsGuard


class PartWeights:
    """The weights of one part, perhaps of several models: on the device, or not.

    They belong to the thread that calls the device.

    Args:
        module: the loaded module.
        device: the model's device. Tensors that are elsewhere, as those of text encoders may be, stay there.
        owner: the model and its part, for messages.
        guard: of a part that other threads call, too.

    Attributes:
        nbytes: bytes of the parameters and buffers on the device.
        here: whether they are there.
    """

    def __init__(
        self, module: torch.nn.Module, device: torch.device, owner: str = "", guard: WeightsGuard | None = None
    ) -> None:
        self._modules = [module]
        self._guards = [guard] if guard is not None else []
        self._device = device
        self.owner = owner
        on_device = {name: tensor for name, tensor in tensors_of(module) if tensor.device.type == device.type}
        self._names = frozenset(on_device)
        self.nbytes = sum({id(tensor): tensor.nbytes for tensor in on_device.values()}.values())
        self.here = True

    @property
    def dropped(self) -> bool:
        """Whether they are nowhere, and must be loaded again."""
        return not self.here and self._device.type == "cpu"

    def share(self, module: torch.nn.Module, guard: WeightsGuard | None = None) -> None:
        """Let a module with the same bytes use these weights instead of its own. ``guard`` is that of the module."""
        self._guards += [guard] if guard is not None else []
        if not self.here:
            # those of the new module are there
            self._set(dict(tensors_of(module)))
            self._arrive()
        self._modules.append(module)
        self._set(dict(tensors_of(self._modules[0])))

    def leave(self) -> None:
        """Free the device: a GPU's weights go to the host, and a CPU's are dropped."""
        with ExitStack() as held:
            for guard in self._guards:
                held.enter_context(guard.lock)
                guard.here = False
            if self._device.type == "cpu":
                self._set({name: torch.empty(0, dtype=tensor.dtype) for name, tensor in self._tensors().items()})
            else:
                self._move(torch.device("cpu"))
        self.here = False

    def come_back(self, loaded: torch.nn.Module | None = None) -> None:
        """Have the weights on the device.

        Args:
            loaded: a module with the same weights, if they were dropped.
        """
        if loaded is None:
            self._move(self._device)
        else:
            self._set(dict(tensors_of(loaded)))
        self._arrive()

    def _arrive(self) -> None:
        self.here = True
        for guard in self._guards:
            with guard.lock:
                guard.here = True

    def _move(self, device: torch.device) -> None:
        tensors = self._tensors()
        if any(type(tensor.data) is not torch.Tensor for tensor in tensors.values()):
            # quantized by torchao: only torch knows how to move them
            for module in self._modules:
                module.to(device)
        else:
            self._set({name: tensor.data.to(device) for name, tensor in tensors.items()})

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in tensors_of(self._modules[0]) if name in self._names}

    def _set(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for module in self._modules:
            for name, tensor in tensors_of(module):
                if name in tensors:
                    tensor.data = tensors[name].data


def digest_of(module: torch.nn.Module) -> str:
    """Return a sha256 over a module's class, config, and the names, shapes, layout and bytes of its tensors."""
    digest = hashlib.sha256(f"{type(module).__module__}.{type(module).__qualname__} {_config_of(module)}".encode())
    for name, tensor in sorted(tensors_of(module), key=lambda pair: pair[0]):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.stride()} {tensor.device.type} ".encode())
        digest.update(tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _config_of(module: torch.nn.Module) -> str:
    """Return the settings of a module's config; names of folders and versions are none."""
    config: Any = getattr(module, "config", None)
    found = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
    ignored = ("_name_or_path", "transformers_version", "_diffusers_version", "architectures")
    return repr(sorted((name, str(value)) for name, value in found.items() if name not in ignored))


def tensors_of(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each parameter and buffer by name; one that has two names twice."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)

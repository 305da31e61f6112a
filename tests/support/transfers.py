"""Counts what a step does that a GPU would notice: copies from the host, numbers read by the host, operations."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")


class Transfers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operations on tensors of the meta device, and those of them that copy from or to another device.

    The meta device computes nothing: a call that reads a tensor's numbers raises, and a copy between devices is an
    operation with tensors of both.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[str] = []
        self.copies: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        output = operation(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.Tensor)]
        # a single number of the host is an argument of the kernel
        devices = {tensor.device for tensor in tensors if tensor.device == META or tensor.dim()}
        if META in devices:
            self.operations.append(str(operation))
            if len(devices) > 1:
                self.copies.append(str(operation))
        return output


def send_to_meta(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Stand in for ``host_copy.send``: memory cannot be pinned for the meta device."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

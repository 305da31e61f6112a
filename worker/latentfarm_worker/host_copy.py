"""Copies of host tensors to the device that never wait for the device's queue."""

from __future__ import annotations

import torch


def pin(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a host tensor in memory from which a GPU copies without waiting; for another device the tensor itself."""
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_pinned() else tensor


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy of a host tensor on the device, without waiting for the device's queue.

    The copy is ordered before all later work of the current stream. On a CPU it is the tensor itself.
    """
    if device.type == "cpu":
        return tensor
    return pin(tensor, device).to(device, non_blocking=True)

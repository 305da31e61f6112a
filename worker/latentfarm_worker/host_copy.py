"""Copies between the host and the device that never wait for the device's queue."""

from __future__ import annotations

import torch


def pin(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a host tensor in memory from which a GPU copies without waiting; for another device the tensor itself."""
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_pinned() else tensor


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy of a host tensor on the device, without waiting for the device's queue.

    The copy is ordered before all later work of the current stream. A tensor that is there is returned itself.
    """
    if tensor.device.type == device.type:
        return tensor
    return pin(tensor, device).to(device, non_blocking=True)


def receive(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Begin a copy from a GPU to pinned host memory on a side stream; return what will hold it."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        host.copy_(tensor, non_blocking=True)
    # without it, the allocator could reuse the memory before the copy has read it
    tensor.record_stream(stream)
    return host

"""Whose fault an error of the device is: told by its type, else by the words that torch and its libraries use."""

from __future__ import annotations

import torch

#: what a smaller batch may cure. Not `CUDA error`s in general, so this is looked for first
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
#: after these the context is gone: every later call of the process fails, whatever the job
_STICKY_WORDS = (
    "CUDA error",
    "HIP error",
    "device-side assert",
    "unspecified launch failure",
    "illegal memory access",
    "uncorrectable ECC error",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUBLAS_STATUS_MAPPING_ERROR",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_MAPPING_ERROR",
    "CUDNN_STATUS_NOT_INITIALIZED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether there was not enough memory; the context is unharmed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _MEMORY_WORDS)


def is_fatal(error: BaseException) -> bool:
    """Return whether the device is lost to this process: "process must be terminated and relaunched", says CUDA."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or any(word in str(error) for word in _STICKY_WORDS)

"""Classify a device's errors, by their type or by the messages of torch and its libraries."""

from __future__ import annotations

import torch

#: a smaller batch may cure these; checked first, since some also contain "CUDA error"
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
#: these destroy the CUDA context: every later call of the process fails, for any job
_FATAL_WORDS = (
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
    """Return whether memory ran out. The process can go on with a smaller batch."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _MEMORY_WORDS)


def is_fatal(error: BaseException) -> bool:
    """Return whether the device is lost to this process, which must restart (CUDA calls such errors sticky)."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or any(word in str(error) for word in _FATAL_WORDS)

"""Errors of the device are classified by their types and messages."""

from __future__ import annotations

import pytest
import torch

from latentfarm_worker import device_errors

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_not_fatal(error: Exception) -> None:
    assert (device_errors.is_out_of_memory(error), device_errors.is_fatal(error)) == (True, False)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasGemmEx`"),
    ],
)
def test_a_lost_context_is_fatal(error: Exception) -> None:
    assert (device_errors.is_out_of_memory(error), device_errors.is_fatal(error)) == (False, True)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        ValueError("CUDA error: in another library's message"),
    ],
)
def test_other_errors_are_neither(error: Exception) -> None:
    assert (device_errors.is_out_of_memory(error), device_errors.is_fatal(error)) == (False, False)

"""Weights and activations of the U-Net in float8 (FP8), by torchao. Images change slightly, so it is never a default.

Each row of a weight, and each token of an activation when the model runs, has a scale of its own: so an image does not
depend on its neighbours. Convolutions, the embeddings of time, the text encoders and the VAE stay as they are. So do
the projections of the text, which are a small share of the work.
"""

from __future__ import annotations

import torch

from latentfarm.errors import ModelError

#: sizes of a matrix that FP8 units multiply
_MULTIPLE = 16
#: the cross-attention's keys and values, apart and fused
_OF_TEXT = ("attn2.to_k", "attn2.to_v", "attn2.to_kv")


def quantize_to_fp8(unet: torch.nn.Module, dtype: torch.dtype) -> None:
    """Quantize the linear layers of the U-Net's transformers in place.

    Raises:
        ModelError: the dtype is not bfloat16, torchao is not installed, or the device has no FP8 units.

    """
    if dtype != torch.bfloat16:
        found = str(dtype).removeprefix("torch.")
        raise ModelError(f"quantization fp8 needs the dtype bfloat16, not {found}; write --dtype bfloat16 or auto")
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
        from torchao.quantization.quantize_.common import KernelPreference
    except ImportError as error:
        raise ModelError(
            f"quantization fp8 needs torchao, which cannot be imported: {error}; pip install 'latentfarm[fp8]', or set "
            "LATENTFARM_QUANTIZATION=none"
        ) from error
    config = Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(),
        # other kernels that happen to be installed would give other bytes
        kernel_preference=KernelPreference.TORCH,
        # those settings time kernels, and lower the precision of float32 in the whole process
        set_inductor_config=False,
    )
    try:
        quantize_(unet, config, filter_fn=_is_quantized)
    except AssertionError as error:
        # torchao's check of the device
        raise ModelError(
            f"quantization fp8 does not run on this device: {error} Use such a GPU, or set LATENTFARM_QUANTIZATION=none"
        ) from error


def _is_quantized(module: torch.nn.Module, name: str) -> bool:
    if not isinstance(module, torch.nn.Linear) or ".attentions." not in name or name.endswith(_OF_TEXT):
        return False
    return module.in_features % _MULTIPLE == 0 and module.out_features % _MULTIPLE == 0

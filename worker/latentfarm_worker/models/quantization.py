"""Weights with fewer bits, as an option: images change, so it is never a default, and receipts have it.

``fp8``: weights and activations of the denoising model in float8, by torchao, for speed. Each row of a weight, and each
token of an activation when the model runs, has a scale of its own. ``nf4``: weights of four bits, for memory; they are
restored before each product. So with neither an image depends on its neighbours.

Only linear layers of the repeated blocks are quantized. The embeddings of time, text and images, the final layers,
convolutions and the VAE stay as they are.
"""

from __future__ import annotations

import torch

from latentfarm.errors import ModelError
from latentfarm_worker.models.nf4 import Nf4Linear, replace_linear_layers

#: what ``--quantization`` takes for the denoising model, and what text encoders can have
QUANTIZATIONS = ("none", "fp8", "nf4")
TEXT_QUANTIZATIONS = ("none", "nf4")

#: sizes of a matrix that FP8 units multiply
_MULTIPLE = 16
#: the U-Net's projections of the text, apart and fused: a small share of the work
_OF_TEXT = ("attn2.to_k", "attn2.to_v", "attn2.to_kv")
#: in names of layers that get one vector for each image, an embedded time: no work, but a quarter of FLUX.1's weights
_MODULATION = ("norm", "adaln", "modulation")
#: classes of blocks that diffusers does not name: those of SD3
_OTHER_BLOCKS = ("JointTransformerBlock", "SD3SingleTransformerBlock")
#: classes of text encoders that stay as they are: they are small
_SMALL_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")


def check_quantization(denoising: str, text: str) -> None:
    """Check the names of two quantizations.

    Raises:
        ModelError: one of them is unknown.
    """
    for name, value, known in (
        ("quantization", denoising, QUANTIZATIONS),
        ("quantization of the text encoders", text, TEXT_QUANTIZATIONS),
    ):
        if value not in known:
            raise ModelError(f"{name} {value!r} is unknown; write {', '.join(known[:-1])} or {known[-1]}")


def move_quantized(model: torch.nn.Module, quantization: str, *, dtype: torch.dtype, device: torch.device) -> None:
    """Quantize a denoising model that is on the host, and move it to the device, in place.

    With ``nf4`` the device never holds the whole model in its dtype.

    Raises:
        ModelError: the model cannot be quantized so.
    """
    if quantization == "nf4":
        quantize_to_nf4(model, device)
    model.to(device)
    if quantization == "fp8":
        quantize_to_fp8(model, dtype)


def quantize_to_nf4(model: torch.nn.Module, device: torch.device) -> None:
    """Replace the linear layers of a denoising model's blocks by packed ones on the device, in place.

    Raises:
        ModelError: it has none that can be packed.
    """
    names = layers_of_blocks(model)
    if not replace_linear_layers(model, names.__contains__, device):
        raise ModelError(
            f"quantization nf4: {type(model).__name__} has no linear layers that can be packed; its file may be "
            "quantized already: set LATENTFARM_QUANTIZATION=none"
        )


def quantize_text_encoder_to_nf4(encoder: torch.nn.Module, device: torch.device) -> bool:
    """Replace the linear layers of a language model by packed ones, in place; return whether it has some.

    CLIP's encoders stay as they are, and so does what is no layer of a block: embeddings and projections.
    """
    if type(encoder).__name__ in _SMALL_ENCODERS:
        return False
    replace_linear_layers(encoder, lambda name: ".layers." in f".{name}" or ".block." in name, device)
    # a model of several may share it with another, which packed it
    return any(isinstance(module, Nf4Linear) for module in encoder.modules())


def quantize_to_fp8(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Quantize the linear layers of a denoising model's blocks in place, on its device.

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
    names = layers_of_blocks(model)
    try:
        quantize_(model, config, filter_fn=lambda layer, name: name in names and _suits_fp8(layer, name))
    except AssertionError as error:
        # torchao's check of the device
        raise ModelError(
            f"quantization fp8 does not run on this device: {error} Use such a GPU, or set LATENTFARM_QUANTIZATION=none"
        ) from error


def layers_of_blocks(model: torch.nn.Module) -> set[str]:
    """Return the names of the modules in a denoising model's blocks.

    Blocks are what diffusers names ``_repeated_blocks``, and in a U-Net all of its transformers.
    """
    if type(model).__name__ == "UNet2DConditionModel":
        return {name for name, _ in model.named_modules() if ".attentions." in name}
    kinds = (*getattr(type(model), "_repeated_blocks", ()), *_OTHER_BLOCKS)
    blocks = [(name, block) for name, block in model.named_modules() if type(block).__name__ in kinds]
    return {f"{name}.{inner}" for name, block in blocks for inner, _ in block.named_modules() if inner}


def _suits_fp8(module: torch.nn.Module, name: str) -> bool:
    if not isinstance(module, torch.nn.Linear) or name.endswith(_OF_TEXT):
        return False
    if any(part in name.lower() for part in _MODULATION):
        return False
    return module.in_features % _MULTIPLE == 0 and module.out_features % _MULTIPLE == 0

"""Weights in NF4, four bits each (QLoRA, arXiv 2305.14314): a quarter of the memory of bfloat16.

The numbers and their order in memory are those of bitsandbytes, without it: its layer takes another kernel for a single
token, and one from the hub if that is installed, so an image's bytes would depend on both. Here the weight is restored
and multiplied as before, by the same operations on every device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

#: the quantiles of a normal distribution, appendix E of the paper
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
#: weights that share a scale
BLOCK = 64


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight as pairs of level numbers, uint8 (N / 2,), and the scales of its blocks, float32 (N / 64,).

    Args:
        weight: N numbers in any shape; N is a multiple of 64.
    """
    blocks = weight.reshape(-1, BLOCK).float()
    scales = blocks.abs().amax(dim=1)
    # a block of zeros has the level 0
    scaled = blocks / torch.where(scales > 0, scales, 1.0)[:, None]
    levels = torch.tensor(LEVELS, device=weight.device)
    numbers = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8).view(-1, 2)
    return numbers[:, 0] << 4 | numbers[:, 1], scales


def unpack(packed: torch.Tensor, scales: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Return the numbers of a packed weight, float32 (N,).

    Args:
        packed: pairs of level numbers, as ``pack`` returns them.
        scales: those of the blocks, as ``pack`` returns them.
        pairs: both levels of each value of a byte, as ``level_pairs`` returns them.
    """
    levels = torch.nn.functional.embedding(packed.int(), pairs)
    return (levels.view(-1, BLOCK) * scales[:, None]).view(-1)


def level_pairs(device: torch.device) -> torch.Tensor:
    """Return the two levels of each value of a byte, float32 (256, 2)."""
    levels = torch.tensor(LEVELS, device=device)
    return torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)


class Nf4Linear(torch.nn.Module):
    """A linear layer whose weight is packed. Its input, bias and output have the dtype of the layer it replaces.

    Args:
        layer: the layer.
        device: where its weight is packed, and stays.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    pairs: torch.Tensor

    def __init__(self, layer: torch.nn.Linear, device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dtype = layer.weight.dtype
        packed, scales = pack(layer.weight.detach().to(device))
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("pairs", level_pairs(device), persistent=False)
        bias = layer.bias
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach().to(device), requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        """The restored weight (out, in)."""
        return unpack(self.packed, self.scales, self.pairs).view(self.out_features, self.in_features).to(self.dtype)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the products of inputs (..., in) with the restored weight, (..., out)."""
        return torch.nn.functional.linear(inputs, self.weight, self.bias)


def replace_linear_layers(model: torch.nn.Module, chosen: Callable[[str], bool], device: torch.device) -> int:
    """Replace the linear layers whose names are chosen, one after the other, and return how many there were.

    Those whose weight is no multiple of 64 numbers stay.
    """
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if type(layer) is torch.nn.Linear and chosen(name) and layer.weight.numel() % BLOCK == 0
    ]
    for name, layer in layers:
        model.set_submodule(name, Nf4Linear(layer, device))
    return len(layers)

"""Which module of a loaded model the change of a weight belongs to, and how its inputs and outputs are arranged.

The U-Nets run with fused projections: queries, keys and values of self-attention are one product, and keys and values
of cross-attention another. A change of one of them is then a part of the fused module's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from latentfarm.errors import JobError
from latentfarm_worker.adapters.lora.files import Change

#: fused modules by the projections that they have, in their order
_FUSED: Mapping[str, tuple[str, ...]] = {"to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v")}


@dataclass(frozen=True)
class Target:
    """A module that changes.

    Attributes:
        name: the module's name in the model.
        parts: the weights that it has side by side: 3 of fused queries, keys and values.
        inputs: the numbers of one input; of a convolution those under its kernel.
        outputs: the numbers of one output, of all parts.
    """

    name: str
    parts: int
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Place:
    """Where in a target a change belongs: the part, and its first and last output."""

    target: Target
    part: int
    begin: int
    end: int


def find_place(model: torch.nn.Module, name: str, change: Change, *, lora: str) -> Place:
    """Return where the change of the weight of module ``name`` belongs.

    Raises:
        JobError: code ``adapter_mismatch``: the model has no such weight, or one of another shape.
    """
    try:
        module: Any = model.get_submodule(name)
    except AttributeError as error:
        raise _mismatch(lora, f"it changes {name}, which this model lacks") from error
    shape = _shape(module)
    theirs = (len(change.up), *change.down.shape[1:])
    # a linear layer in one file may be a convolution of 1 x 1 in another
    if shape is None or _squeezed(theirs) != _squeezed(shape):
        ours = "none" if shape is None else " x ".join(map(str, shape))
        raise _mismatch(lora, f"its change of {name} is {' x '.join(map(str, theirs))}, and the weight is {ours}")
    outputs, inputs = shape[0], _product(shape[1:])
    parent, _, leaf = name.rpartition(".")
    owner = model.get_submodule(parent)
    for fused, leaves in _FUSED.items():
        if getattr(owner, "fused_projections", False) and hasattr(owner, fused) and leaf in leaves:
            sizes = [int(getattr(owner, each).out_features) for each in leaves]
            at = leaves.index(leaf)
            begin = sum(sizes[:at])
            return Place(Target(f"{parent}.{fused}", len(leaves), inputs, sum(sizes)), at, begin, begin + sizes[at])
    return Place(Target(name, 1, inputs, outputs), 0, 0, outputs)


def _shape(module: Any) -> tuple[int, ...] | None:
    """Return the shape of a weight that can change; None if it cannot."""
    if isinstance(module, torch.nn.Conv2d):
        return (module.out_channels, module.in_channels, *module.kernel_size) if module.groups == 1 else None
    if hasattr(module, "in_features"):
        return int(module.out_features), int(module.in_features)
    return None


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _mismatch(lora: str, problem: str) -> JobError:
    return JobError(
        "adapter_mismatch", f"lora {lora!r} was trained on another base model: {problem}; write one of this model's"
    )

"""The blocks of a model that run compiled.

A model repeats a few kinds of blocks. Each kind is compiled once for each of its shapes, as by diffusers'
``compile_repeated_blocks``, which takes a sixth of the time that the whole model takes and gives the same speed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch._dynamo

#: transformer blocks are all that diffusers names. In residual blocks a GPU gains, too, from fusing a group
#: normalization with its activation
_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
#: graphs of one kind of block: its widths at each level, times the sizes of batches that a calibration tries
_MAX_GRAPHS = 512


def compile_blocks(*models: torch.nn.Module) -> None:
    """Let the models' blocks be compiled at their first call with each shape. What was compiled before is dropped.

    Nothing runs uncompiled without a sign: because of ``fullgraph`` a block raises that is not one graph, and so does a
    graph beyond the limit.
    """
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = _MAX_GRAPHS
    torch._dynamo.config.accumulated_recompile_limit = _MAX_GRAPHS
    for block in _blocks_of(models):
        # with dynamic sizes Inductor does not choose the layout of convolutions
        block.compile(fullgraph=True, dynamic=False)


def uncompile_blocks(*models: torch.nn.Module) -> None:
    """Let the models' blocks run uncompiled."""
    for block in _blocks_of(models):
        block._compiled_call_impl = None  # torch has no method that reverts ``compile``


def _blocks_of(models: tuple[torch.nn.Module, ...]) -> Iterator[torch.nn.Module]:
    return (block for model in models for block in model.modules() if type(block).__name__ in _BLOCKS)

"""The blocks of a model that run compiled.

A model repeats a few kinds of blocks. Each kind is compiled once for each of its shapes, as by diffusers'
``compile_repeated_blocks``, which takes less time than compiling the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch._dynamo import config as dynamo_config

#: names of classes
_BLOCKS = (
    # of U-Nets diffusers names the first only. The second have the group normalizations and activations, which Inductor
    # fuses
    "BasicTransformerBlock",
    "ResnetBlock2D",
    # SD3
    "JointTransformerBlock",
    # FLUX.1
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
    # Chroma
    "ChromaTransformerBlock",
    "ChromaSingleTransformerBlock",
    # FLUX.2
    "Flux2TransformerBlock",
    "Flux2SingleTransformerBlock",
    # Z-Image
    "ZImageTransformerBlock",
)
#: graphs of one kind of block: its widths at each level, times the sizes of batches that a calibration tries
_MAX_GRAPHS = 512


def compile_blocks(*models: torch.nn.Module) -> None:
    """Let the models' blocks be compiled at their first call with each shape. What was compiled before is dropped.

    Nothing runs uncompiled without a sign: because of ``fullgraph`` a block raises that is not one graph, and so does a
    graph beyond the limit.
    """
    torch.compiler.reset()
    dynamo_config.recompile_limit = dynamo_config.accumulated_recompile_limit = _MAX_GRAPHS
    for block in _blocks_of(models):
        # with dynamic sizes Inductor does not choose the layout of convolutions
        block.compile(fullgraph=True, dynamic=False)


def uncompile_blocks(*models: torch.nn.Module) -> None:
    """Let the models' blocks run uncompiled."""
    for block in _blocks_of(models):
        block._compiled_call_impl = None  # noqa: SLF001 (torch has no method that reverts ``compile``)


def uncompiled() -> AbstractContextManager[None]:
    """Return a context in which compiled blocks run uncompiled."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def _blocks_of(models: tuple[torch.nn.Module, ...]) -> Iterator[torch.nn.Module]:
    return (block for model in models for block in model.modules() if type(block).__name__ in _BLOCKS)

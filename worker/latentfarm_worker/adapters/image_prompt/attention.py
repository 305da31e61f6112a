"""Attention to image prompts, with a scale for each row (IP-Adapter, arXiv 2308.06721).

diffusers' processor has one scale for all rows of a call. Here the attention to the tokens of an image is added to that
to the text, times the scale of the row, before both are projected: as there, but for the scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from latentfarm_worker.adapters.image_prompt.loading import AdapterWeights


class PromptRows(NamedTuple):
    """One image prompt of each row: the adapter, the tokens (R, T, D), and the scales, float32 (R,)."""

    adapter: AdapterWeights
    tokens: torch.Tensor
    scales: torch.Tensor


@contextmanager
def attending(layers: Mapping[str, Any], prompts: Sequence[PromptRows]) -> Iterator[None]:
    """Add attention to image prompts within this to cross-attentions, by name. The calls must not be compiled."""
    with ExitStack() as stack:
        for name, layer in layers.items():
            added = _Attention(layer.heads, [(*_weights(each.adapter, name), *each[1:]) for each in prompts])
            stack.callback(layer.to_q.register_forward_hook(added.take_queries).remove)
            stack.callback(layer.to_out[0].register_forward_pre_hook(added.add).remove)
        yield


class _Attention:
    """The attention of one layer to the image prompts of its rows."""

    def __init__(
        self, heads: int, prompts: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]
    ) -> None:
        self._heads = heads
        self._prompts = prompts
        self._queries: torch.Tensor

    def take_queries(self, _module: torch.nn.Module, _inputs: Any, queries: torch.Tensor) -> None:
        """Keep the queries of a call, (R, N, inner)."""
        self._queries = queries

    def add(self, _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the inputs of the layer's last projection, (R, N, inner), with the attention to the prompts."""
        total, *others = inputs
        queries = self._split(self._queries)
        for key, value, tokens, scales in self._prompts:
            found = scaled_dot_product_attention(
                queries, self._split(linear(tokens, key)), self._split(linear(tokens, value))
            )
            joined = found.transpose(1, 2).reshape(total.shape)
            # in float32, as diffusers' number
            total = total + (scales[:, None, None] * joined).to(total.dtype)
        return (total, *others)

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        """Return (R, N, inner) by head, (R, heads, N, inner / heads)."""
        return states.view(*states.shape[:2], self._heads, -1).transpose(1, 2)


def _weights(adapter: AdapterWeights, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    place = adapter.places[name]
    return adapter.keys[place], adapter.values[place]

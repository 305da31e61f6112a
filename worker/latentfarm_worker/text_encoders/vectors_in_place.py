"""Call a text encoder with vectors in the place of tokens. Its weights and its tokenizer stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from latentfarm_worker.host_copy import send
from latentfarm_worker.text_encoders.prompt import FIRST_VECTOR


@contextmanager
def vectors_in_place(
    model: Any, lines: Sequence[Sequence[int]], vectors: Sequence[Sequence[torch.Tensor]]
) -> Iterator[None]:
    """Let the encoder read vectors where its input has their numbers, within this context.

    The input keeps the numbers, for where the pooled text is depends on them in a model whose config has the old
    ``eos_token_id`` of 2: transformers takes the place of the greatest. So it is the last vector in the syntax
    ``plain``, as in diffusers, and the end in ``a1111``, as in its web UI.

    Args:
        model: the text encoder, which only this thread calls.
        lines: the input, a row each; numbers as in ``TokenizedPrompt.chunks``.
        vectors: by row, the vectors (D,) that its numbers count.
    """
    found = [
        (row, at, vectors[row][number - FIRST_VECTOR if number > 0 else -1 - number])
        for row, line in enumerate(lines)
        for at, number in enumerate(line)
        if number < 0 or number >= FIRST_VECTOR
    ]
    if not found:
        yield
        return
    table = model.get_input_embeddings()
    places = send(torch.tensor([(row, at) for row, at, _ in found]).T, model.device)
    new = send(torch.stack([vector.to(model.dtype) for _, _, vector in found]), model.device)

    def hide(_: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0].clamp(0, table.num_embeddings - 1),)

    def put(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output.index_put((places[0], places[1]), new.to(output.dtype))

    hooks = table.register_forward_pre_hook(hide), table.register_forward_hook(put)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

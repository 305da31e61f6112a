"""CUDA graphs of a micro-batch's evaluation: the host launches one graph instead of hundreds of kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from latentfarm_worker.adapters.base import has_own_weights
from latentfarm_worker.text_encoders.prompt import Tensors

#: an evaluation of a micro-batch, with its indices and conditioning
Evaluate = Callable[[torch.Tensor, Tensors], None]
#: calls before the capture, in which libraries choose kernels and allocate their own memory
_WARM_UPS = 3


@dataclass(frozen=True)
class _Captured:
    """A graph, and the tensors that it reads."""

    graph: torch.cuda.CUDAGraph
    indices: torch.Tensor
    conditioning: Tensors


class GraphedEvaluation:
    """Runs evaluations as CUDA graphs, one for each set of names and shapes of the conditioning.

    A graph replays the kernels of its capture at the same addresses, so its inputs are copied to fixed places. It gives
    the bytes of the calls that it captured. Adapters with weights of their own come and go, and would leave a graph
    with addresses of freed memory: calls with them run without one.

    Args:
        evaluate: the evaluation; all state that it uses must stay where it is.
        idle_indices: indices with which the evaluation changes no image, for the calls before the capture.
    """

    def __init__(self, evaluate: Evaluate, idle_indices: torch.Tensor) -> None:
        self._evaluate = evaluate
        self._idle_indices = idle_indices
        self._captured: dict[frozenset[tuple[str, tuple[int, ...]]], _Captured] = {}

    def __call__(self, indices: torch.Tensor, conditioning: Tensors) -> None:
        """Run one evaluation. The first with a shape captures it, and waits for the device."""
        if has_own_weights(conditioning):
            self._evaluate(indices, conditioning)
            return
        inputs = frozenset((name, tuple(tensor.shape)) for name, tensor in conditioning.items())
        captured = self._captured.get(inputs)
        if captured is None:
            captured = self._captured[inputs] = self._capture(conditioning)
        captured.indices.copy_(indices)
        for name, tensor in conditioning.items():
            captured.conditioning[name].copy_(tensor)
        captured.graph.replay()

    def _capture(self, conditioning: Tensors) -> _Captured:
        indices = self._idle_indices.clone()
        fixed = {name: tensor.clone() for name, tensor in conditioning.items()}
        stream = torch.cuda.Stream(indices.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(indices.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._evaluate(indices, fixed)
        torch.cuda.current_stream(indices.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads pin memory and query events meanwhile, which must not break the capture
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._evaluate(indices, fixed)
        return _Captured(graph, indices, fixed)

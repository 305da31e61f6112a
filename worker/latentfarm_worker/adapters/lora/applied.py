"""Add the changes of each row to the outputs of modules, in calls with LoRAs only.

In such a call the modules' ``forward`` is replaced, and put back after it. A call without LoRAs runs the model as it
is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from latentfarm_worker.adapters.lora.pages import Pages


class ChangedModules:
    """The modules of a model that LoRAs change.

    Args:
        model: the denoising model.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._changed: dict[str, _Changed] = {}

    @contextmanager
    def use(self, rows: Mapping[str, Pages]) -> Iterator[None]:
        """Add to the outputs of each named module what each row changes; the rows of all inputs must be these."""
        changed = [self._of(name, pages) for name, pages in rows.items()]
        try:
            for each in changed:
                # past Module.__setattr__, which costs ten times as much
                each.module.__dict__["forward"] = each
            yield
        finally:
            for each in changed:
                each.module.__dict__.pop("forward", None)
                each.pages = None

    def _of(self, name: str, pages: Pages) -> _Changed:
        if name not in self._changed:
            self._changed[name] = _changed_module(self._model.get_submodule(name))
        found = self._changed[name]
        found.pages = pages
        return found


class _Changed:
    """A linear layer with changes by row."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.pages: Pages | None = None
        self._forward: Callable[..., torch.Tensor] = module.forward

    def __call__(self, inputs: torch.Tensor, *arguments: Any) -> torch.Tensor:
        output = self._forward(inputs, *arguments)
        self._add(inputs.reshape(len(inputs), -1, inputs.shape[-1]), output.view(len(output), -1, output.shape[-1]))
        return output

    def _add(self, inputs: torch.Tensor, output: torch.Tensor) -> None:
        """Add the changes of inputs (R, L, inputs) to the output (R, L, outputs)."""
        assert self.pages is not None  # noqa: S101 (it is called within ``use``)
        down, up = self.pages
        output.baddbmm_(torch.bmm(inputs, down.transpose(1, 2)), up)


class _ChangedConvolution(_Changed):
    """A convolution: a linear layer over what its kernel covers."""

    def __init__(self, module: torch.nn.Conv2d) -> None:
        super().__init__(module)
        self._is_point = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.padding == (0, 0)
        self._unfold = torch.nn.Unfold(module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]

    def __call__(self, inputs: torch.Tensor, *arguments: Any) -> torch.Tensor:
        output = self._forward(inputs, *arguments).contiguous(memory_format=torch.channels_last)
        if self._is_point:
            covered = inputs.permute(0, 2, 3, 1).reshape(len(inputs), -1, inputs.shape[1])
        else:
            covered = self._unfold(inputs).transpose(1, 2)
        self._add(covered, output.permute(0, 2, 3, 1).view(len(output), -1, output.shape[1]))
        return output


def _changed_module(module: torch.nn.Module) -> _Changed:
    return _ChangedConvolution(module) if isinstance(module, torch.nn.Conv2d) else _Changed(module)

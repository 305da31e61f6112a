"""Build a module from a config and weights, without initial weights that would be overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from latentfarm.errors import ModelError

#: buffers that need not be saved
_COMPUTED = ("position_ids", "num_batches_tracked")
#: reported of many missing names
_MAX_NAMES = 3


class _NoWeights(TorchFunctionMode):
    """Allocate nothing for the parameters of modules, which begin as ``torch.empty``; buffers are computed as usual."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        keywords = dict(kwargs or {})
        if func is torch.empty:
            keywords["device"] = "meta"
        return func(*args, **keywords)


def build(
    kind: Any, config: dict[str, Any], tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, where: str
) -> torch.nn.Module:
    """Return a module of a diffusers or transformers class with the given weights, on the CPU.

    Args:
        kind: the class.
        config: its config.
        tensors: the weights by the class's names, in any dtype. Names that the class does not have are ignored.
        dtype: of the module, except where the class keeps float32.
        where: the file and part, for messages.

    Raises:
        ModelError: a weight is missing or has another shape.
    """
    of_transformers = kind.__module__.startswith("transformers.")
    with _NoWeights():
        module: Any = kind(kind.config_class.from_dict(config)) if of_transformers else kind.from_config(config)
    wanted = module.state_dict()
    bare = {name.removeprefix("text_model.") for name in wanted}
    if "text_model.embeddings.token_embedding.weight" not in wanted and "embeddings.token_embedding.weight" in bare:
        # CLIPTextModel has no wrapper since transformers 5.6
        tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    tied = set(getattr(module, "_tied_weights_keys", None) or ())
    _check(wanted, tensors, tied, where)
    kept = tuple(getattr(kind, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else ()
    weights = {}
    for name in wanted:
        if name in tensors:
            keeps = any(each in name.split(".") for each in kept)
            weights[name] = _in_memory(tensors[name], wanted[name], torch.float32 if keeps else dtype)
    module.load_state_dict(weights, strict=False, assign=True)
    if of_transformers:
        module.tie_weights()
    elif not kept:
        # as from_pretrained does, buffers that are not saved too
        torch.nn.Module.to(module, dtype)
    ready: torch.nn.Module = module.eval()
    return ready


def _in_memory(tensor: torch.Tensor, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a copy: in a file's memory, tensors begin at any address, and kernels may round by that."""
    return tensor.to(dtype if like.is_floating_point() else like.dtype).clone(memory_format=torch.contiguous_format)


def _check(wanted: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], tied: set[str], where: str) -> None:
    missing = [name for name in wanted if name not in tensors and name not in tied and not name.endswith(_COMPUTED)]
    if missing:
        raise ModelError(f"{where}: lacks {_some(missing)}; download the file again, or use another")
    wrong = [name for name, each in wanted.items() if name in tensors and tensors[name].shape != each.shape]
    if wrong:
        found, expected = (list(each[wrong[0]].shape) for each in (tensors, wanted))
        raise ModelError(
            f"{where}: {_some(wrong)} has the shape {found}, but the config makes {expected}; name a base of the same "
            "family and size with --base"
        )


def _some(names: list[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")

"""What an embedding's bits depend on besides its prompt: the key of its file has it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from latentfarm_worker.device_conditions import device_conditions

#: entries of a config that say where it comes from, and change no number
_ORIGIN = ("_name_or_path", "transformers_version", "_commit_hash")
#: what an encoder reads of its tokenizer; the prompt's own tokens are in the key
_OF_TOKENIZER = ("bos_token_id", "eos_token_id", "pad_token_id", "model_max_length", "padding_side")


def model_conditions(
    encoders: Mapping[str, Any], tokenizers: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the conditions that a model sets, in a JSON form.

    Args:
        encoders: the text encoders by part.
        tokenizers: the tokenizers by part.
        settings: the digest of the weights, and what else the family's ``encode`` depends on.
    """
    return {
        "latentfarm": version("latentfarm"),
        "transformers": version("transformers"),
        "settings": _json_form(settings),
        "encoders": {
            part: [type(encoder).__name__, _json_form(_own(encoder.config.to_dict())), str(encoder.dtype)]
            for part, encoder in encoders.items()
        },
        "tokenizers": {
            part: {name: _json_form(getattr(tokenizer, name, None)) for name in _OF_TOKENIZER}
            for part, tokenizer in tokenizers.items()
        },
    }


def embedding_conditions(model: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return all conditions: those of the model, and those of the device on which its text encoders compute."""
    return {**model, "device": device_conditions(device), "precision": torch.get_float32_matmul_precision()}


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _ORIGIN}


def _json_form(value: Any) -> Any:
    """Return a value with names as keys and text in the place of objects such as dtypes."""
    if isinstance(value, Mapping):
        return {str(name): _json_form(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json_form(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)

"""The kinds of adapters, which change what a model renders, and what each is named in the ledger and in receipts."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

#: names listed in a message
_MAX_NAMES = 20


class AdapterKind(StrEnum):
    """What an adapter is.

    ``lora``: low-rank changes of weights. ``embedding``: the vectors of a word, as textual inversion trains them.
    ``controlnet``: a network that follows an image. ``ip_adapter``: attention to an image that is a prompt.
    ``refiner``: a U-Net that makes the last steps.
    """

    LORA = "lora"
    EMBEDDING = "embedding"
    CONTROLNET = "controlnet"
    IP_ADAPTER = "ip_adapter"
    REFINER = "refiner"


def describe_unknown(kind: AdapterKind, name: str, known: Sequence[str]) -> str:
    """Return the message for a name that no adapter of a kind has, with those that are known."""
    if not known:
        return f"{kind} {name!r} is unknown: the model's workers have none; set LATENTFARM_ADAPTERS for them"
    more = f" or one of {len(known) - _MAX_NAMES} others" if len(known) > _MAX_NAMES else ""
    return f"{kind} {name!r} is unknown; write {', '.join(known[:_MAX_NAMES])}{more}"

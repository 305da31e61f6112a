"""The kinds of adapters, which change what a model renders, and what each is named in the ledger and in receipts."""

from __future__ import annotations

from enum import StrEnum


class AdapterKind(StrEnum):
    """What an adapter is.

    ``lora``: low-rank changes of weights. ``embedding``: the vectors of a word, as textual inversion trains them.
    ``controlnet``: a network that follows an image. ``ip_adapter``: attention to an image that is a prompt.
    """

    LORA = "lora"
    EMBEDDING = "embedding"
    CONTROLNET = "controlnet"
    IP_ADAPTER = "ip_adapter"

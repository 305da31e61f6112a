"""Amounts on the command line: a number, or a share of all."""

from __future__ import annotations

import re

from latentfarm.errors import InputError

_AMOUNT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})\s*(%?)", re.ASCII)


def parse_amount(option: str, text: str, *, zero: bool = False) -> float:
    """Return a share below 1, written so or as a percentage, or a whole number from 1 on.

    Args:
        option: the option that has it, for the error.
        text: the amount, such as 0.1, 10% or 20.
        zero: whether it may be 0, or 0%.

    Raises:
        InputError: it has another form, or is 100% or more.
    """
    found = _AMOUNT.fullmatch(text.strip())
    amount = (float(found[1]) / 100 if found[2] else float(found[1])) if found else -1.0
    is_share = amount < 1 if found and found[2] else amount < 1 or amount.is_integer()
    if amount < 0 or not is_share or (not amount and not zero):
        raise InputError(f"{option} {text!r}: write a share such as 0.1 or 10%, or a number such as 20")
    return amount

"""Weights of alternatives and of a wildcard's lines: ``3::red``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

_UNIT = 1_000_000
_WEIGHT = re.compile(r"\s*(?P<number>\d{1,6}(?:\.\d{0,6})?|\.\d{1,6})\s*::")
_NOT_A_WEIGHT = re.compile(r"\s*[+-]?[\d.]+(?:[eE][+-]?\d+)?\s*::")


class ChoiceError(Exception):
    """A choice is invalid: problem and cure."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The running sums of weights, in millionths so that they are exact."""

    sums: Sequence[int]
    #: how many are above 0
    positive: int

    @classmethod
    def of(cls, weights: Sequence[int]) -> Weights:
        """Return the sums of these weights."""
        return cls(tuple(accumulate(weights)), sum(weight > 0 for weight in weights))

    @classmethod
    def equal(cls, count: int) -> Weights:
        """Return the sums of ``count`` weights of 1, without a list of them."""
        return cls(range(_UNIT, (count + 1) * _UNIT, _UNIT), count)

    @property
    def vary(self) -> bool:
        """Whether the weights differ."""
        return self.sums[-1] != self.sums[0] * len(self.sums) or self.positive < len(self.sums)

    def start(self, place: int) -> int:
        """Return the sum of all weights before ``place``."""
        return self.sums[place - 1] if place else 0

    def places(self) -> Sequence[int]:
        """Return the places with a weight above 0."""
        if self.positive == len(self.sums):
            return range(self.positive)
        return [place for place, end in enumerate(self.sums) if end > self.start(place)]


def parse_weight(text: str, at: int = 0) -> tuple[int, int]:
    """Return the weight that begins at ``at``, in millionths, and its end. Without one: 1, and ``at``.

    Raises:
        ChoiceError: it looks like a weight and is none.
    """
    matched = _WEIGHT.match(text, at)
    if matched is None:
        if unclear := _NOT_A_WEIGHT.match(text, at):
            raise ChoiceError(f"weight {unclear[0].strip()[:30]} is invalid; write 0:: to 999999::, such as 0.5::")
        return _UNIT, at
    whole, _, part = matched["number"].partition(".")
    return int(whole or 0) * _UNIT + int(part.ljust(6, "0")), matched.end()

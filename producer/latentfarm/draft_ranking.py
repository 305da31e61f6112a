"""The order of drafts by a number of their result lines, without near duplicates, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

#: bits of a perceptual hash, which a receipt has as hex text
HASH_BITS = 64
_BANDS, _BAND_BITS = 4, 16
_BAND = (1 << _BAND_BITS) - 1


@dataclass(frozen=True, slots=True)
class RankedDraft:
    """What the order of a draft depends on: its number, None without one, and its perceptual hash."""

    index: int
    number: float | None
    phash: int | None


def ranked_draft(result: Mapping[str, Any], by: str) -> RankedDraft:
    """Return the draft of a result line, with its number ``by`` (empty: none) as ``number_of`` finds it."""
    text = (result.get("scores") or {}).get("phash")
    return RankedDraft(result["index"], number_of(result, by) if by else None, _parse_hash(text))


def number_of(result: Mapping[str, Any], by: str) -> float | None:
    """Return a finite number of a result line, None if it has none.

    Args:
        result: the line.
        by: a dotted path such as ``scores.clip`` or ``columns.x``, or the name of a scorer. A text that is a number, as
            columns of tables are, counts as one.
    """
    found = _number(_value(result, by))
    return found if found is not None or "." in by else _number((result.get("scores") or {}).get(by))


def rank(drafts: Iterable[RankedDraft], *, distinct: int | None = None) -> Iterator[RankedDraft]:
    """Yield drafts, best first: by falling number, then by rising index. Those without a number follow the others.

    Args:
        drafts: in any order.
        distinct: leave out drafts whose perceptual hash differs from that of a better one in at most so many bits; one
            without a hash stays [default: leave out none].
    """
    known = None if distinct is None else _DistinctHashes(distinct)
    for draft in sorted(drafts, key=_order):
        if known is None or draft.phash is None or known.add(draft.phash):
            yield draft


def numbers_in(result: Mapping[str, Any]) -> list[str]:
    """Return the paths of a result line's numbers by which drafts may be ordered."""
    found = [name for name in result.get("scores") or {} if number_of(result, f"scores.{name}") is not None]
    columns = [f"columns.{name}" for name in result.get("columns") or {}]
    return [*found, "rating", *(path for path in columns if number_of(result, path) is not None)]


def count_best(top: float, drafts: int) -> int:
    """Return how many of so many drafts are the best: ``top`` below 1 is a share, from 1 on a number, 0 all."""
    if not top or not drafts:
        return drafts
    return max(1, round(top * drafts)) if top < 1 else min(int(top), drafts)


def _order(draft: RankedDraft) -> tuple[float, int]:
    return (math.inf if draft.number is None else -draft.number, draft.index)


def _value(found: Any, path: str) -> Any:
    """Return the value at a dotted path, None if there is none. Names of columns may have dots as well."""
    if not isinstance(found, Mapping):
        return None
    if path in found:
        return found[path]
    at = path.find(".")
    while at >= 0:
        value = _value(found.get(path[:at]), path[at + 1 :])
        if value is not None:
            return value
        at = path.find(".", at + 1)
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _parse_hash(text: Any) -> int | None:
    try:
        found = int(text, 16) if isinstance(text, str) else -1
    except ValueError:
        return None
    return found if 0 <= found < 1 << HASH_BITS else None


class _DistinctHashes:
    """Hashes of which any two differ in more than ``bits`` bits.

    If two hashes differ in at most ``bits`` bits, one of their four bands of 16 bits differs in at most a fourth of
    them. So a near one is found in the bands' tables, by the few values that differ so little from its own.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        near = range(min(bits // _BANDS, _BAND_BITS) + 1)
        self._masks = [sum(1 << bit for bit in flips) for count in near for flips in combinations(range(16), count)]
        self._hashes: list[int] = []
        self._bands: list[dict[int, list[int]]] = [{} for _ in range(_BANDS)]

    def add(self, found: int) -> bool:
        """Add a hash unless a near one is there; return whether it was added."""
        if any((found ^ known).bit_count() <= self._bits for known in self._candidates(found)):
            return False
        self._hashes.append(found)
        for band, values in enumerate(self._bands):
            values.setdefault(found >> band * _BAND_BITS & _BAND, []).append(found)
        return True

    def _candidates(self, found: int) -> Iterable[int]:
        # few hashes are compared sooner than looked up
        if len(self._hashes) <= _BANDS * len(self._masks):
            yield from self._hashes
            return
        for band, values in enumerate(self._bands):
            own = found >> band * _BAND_BITS & _BAND
            for mask in self._masks:
                yield from values.get(own ^ mask, ())

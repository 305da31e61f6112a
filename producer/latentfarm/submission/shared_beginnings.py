"""Steps that images have in common: rows that differ only from a step on, as those of a sweep of ``guidance_interval``.

A worker makes them once. It finds such images among those that it has at the same time, so only rows near each other
are counted here. Images have nothing in common unless their seeds are the same.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from math import ceil
from typing import Any, NamedTuple

from latentfarm.edit_fields import SECOND_STAGE_FIELDS, EditFields, controls_of
from latentfarm.job import LATER_FIELDS
from latentfarm.step_counts import evaluations_between, first_evaluation
from latentfarm.submission.edit_rows import count_steps

#: rows with a common beginning that a new one is compared with, and beginnings that are remembered
_ROWS, _BEGINNINGS = 16, 64

#: fields without effect on the first steps of an image, and the seed
_LATER = frozenset(
    {
        *LATER_FIELDS,
        *("id", "columns", "safety", "scorers", "draft", "num_images_per_prompt", "seed"),
        *("save_intermediates", "partial_images"),
    }
)
#: a value from a step on
_Changes = tuple[tuple[int, object], ...]


class Shared(NamedTuple):
    """What an image shares with an earlier one.

    Attributes:
        steps: the first ones.
        work: rows of the model in these steps.
    """

    steps: int
    work: int


_NOTHING = Shared(0, 0)


class _Row(NamedTuple):
    """A row: the steps of its first stage, those with guidance, the changes of each field, and its second stage."""

    steps: int
    guided: range
    changes: tuple[_Changes, ...]
    second: tuple[object, ...]


class SharedBeginnings:
    """Finds what rows share with those before them.

    Args:
        flow: whether the model was trained by flow matching.
        embeds_guidance: whether guidance is an input of the model.

    Attributes:
        unseeded: rows that would share steps if they had a seed.
    """

    def __init__(self, *, flow: bool = False, embeds_guidance: bool = False) -> None:
        self._flow, self._embeds_guidance = flow, embeds_guidance
        self._recent: OrderedDict[str, deque[Mapping[str, Any] | _Row]] = OrderedDict()
        self.unseeded = 0

    def add(self, fields: Mapping[str, Any]) -> Shared:
        """Return what each image of a row shares with one of an earlier row.

        Args:
            fields: those of the row and of its defaults.
        """
        if fields.get("save_intermediates") or fields.get("partial_images"):
            return _NOTHING
        key = self._key(fields)
        known = self._recent.get(key)
        if known is None:
            # most rows have nothing in common with others: they cost no more than their key
            self._recent[key] = deque([fields], maxlen=_ROWS)
            if len(self._recent) > _BEGINNINGS:
                self._recent.popitem(last=False)
            return _NOTHING
        self._recent.move_to_end(key)
        if not isinstance(known[0], _Row):
            known[0] = self._row(known[0])
        row = self._row(fields)
        others = [other for other in known if isinstance(other, _Row)]
        known.append(row)
        if fields.get("seed") is None:
            # equal rows are meant to give different images
            self.unseeded += any(other != row and _common_steps(row, other) for other in others)
            return _NOTHING
        steps = max(_common_steps(row, other) for other in others)
        return Shared(steps, steps + len(range(min(row.guided.start, steps), min(row.guided.stop, steps))))

    def _key(self, fields: Mapping[str, Any]) -> str:
        """Return a text that is equal for rows which may begin alike."""
        loras = [(lora.name, lora.start > 0) for lora in fields.get("loras") or ()]
        common = sorted((name, value) for name, value in fields.items() if name not in _LATER)
        scale = fields["guidance_scale"] if self._embeds_guidance else None
        seed, images = fields.get("seed"), fields.get("num_images_per_prompt", 1)
        return repr((common, loras, scale, seed, images))

    def _row(self, fields: Mapping[str, Any]) -> _Row:
        steps, _ = count_steps(fields, flow=self._flow)
        guided = range(0)
        if fields["guidance_scale"] > 1 and not self._embeds_guidance:
            bounds = fields.get("guidance_interval") or (0.0, 1.0)
            guided = range(*(ceil(share * steps - 1e-9) for share in bounds))
        scale = (fields["guidance_scale"], fields.get("negative_prompt") or "")
        changes = [_changes(None, (guided.start, scale), (guided.stop, None))]
        lists = {name: _given(fields, name) for name in EditFields.model_fields}
        for control in controls_of(lists):
            first, end = evaluations_between(control.start, control.end, steps)
            changes.append(_changes(0.0, (first, control.scale), (end, 0.0)))
        changes += [
            _changes(0.0, (first_evaluation(lora.start, steps), lora.scale)) for lora in fields.get("loras") or ()
        ]
        # what a refiner makes is not shared
        if fields.get("refiner"):
            steps = first_evaluation(_given(fields, "refiner_start"), steps)
        return _Row(steps, guided, tuple(changes), tuple(fields.get(name) for name in SECOND_STAGE_FIELDS))


def _given(fields: Mapping[str, Any], name: str) -> Any:
    """Return a field, or its default."""
    value = fields.get(name)
    return EditFields.model_fields[name].default if value is None else value


def _changes(before: object, *changes: tuple[int, object]) -> _Changes:
    """Return what a value is from each step on; of changes at one step the last one counts."""
    return tuple(sorted({0: before, **dict(changes)}.items()))


def _common_steps(row: _Row, other: _Row) -> int:
    """Return the steps that two rows have in common, which begin alike but for their changes."""
    common = min(row.steps, other.steps)
    for ours, theirs in zip(row.changes, other.changes, strict=True):
        common = min(common, _first_difference(ours, theirs, common))
    return common


def _first_difference(ours: _Changes, theirs: _Changes, end: int) -> int:
    """Return the first step before ``end`` at which two values differ, else ``end``."""
    for step in sorted({step for step, _ in (*ours, *theirs)}):
        if _value(ours, step) != _value(theirs, step):
            return min(step, end)
    return end


def _value(changes: _Changes, step: int) -> object:
    return next(value for first, value in reversed(changes) if first <= step)

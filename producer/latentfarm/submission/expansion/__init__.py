"""What one row of prompts becomes: the product of its sweeps, with dynamic prompts decided."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from latentfarm.errors import InputError
from latentfarm.job import Row
from latentfarm.submission.expansion.dynamic import DynamicPrompts
from latentfarm.submission.expansion.sweeps import MAX_FACTOR, Sweep, factor_of, parse_sweeps
from latentfarm.submission.expansion.wildcards import Wildcards

__all__ = ["MAX_FACTOR", "Expansion"]


@dataclass(frozen=True)
class Expansion:
    """Sweeps and dynamic prompts, checked; nothing of the product lies in memory.

    A swept value replaces the row's own. Every row of the product keeps the ``id`` and the ``columns`` of its row.
    """

    sweeps: tuple[Sweep, ...] = ()
    dynamic: DynamicPrompts | None = None

    @classmethod
    def parse(
        cls, sweeps: Sequence[str] = (), *, wildcards: Path | None = None, dynamic: bool = False, seed: int = 0
    ) -> Expansion:
        """Return the expansion that options ask for.

        Args:
            sweeps: ``FIELD=VALUES`` each, as ``parse_sweeps`` takes them.
            wildcards: the folder of ``name.txt`` for ``__name__``.
            dynamic: whether ``{a|b}`` and ``__name__`` in prompts and negative prompts are choices.
            seed: what the choices are made of, beside the row's number and its place in the product.

        Raises:
            InputError: a sweep is wrong, or the folder cannot be read.
        """
        if wildcards is not None and not dynamic:
            raise InputError(f"wildcards {wildcards}: prompts are taken as they stand; write --dynamic-prompts too")
        decided = DynamicPrompts(seed, Wildcards(wildcards)) if dynamic else None
        return cls(parse_sweeps(sweeps), decided)

    @property
    def is_plain(self) -> bool:
        """Whether every row stays as it is."""
        return not self.sweeps and self.dynamic is None

    @cached_property
    def key(self) -> str:
        """A text that differs wherever the outcome may; empty for a plain expansion.

        It holds the sweeps in order, the seed, and the digest of every wildcard file, used or not.
        """
        if self.is_plain:
            return ""
        dynamic = None if self.dynamic is None else self.dynamic.key
        return json.dumps({"sweeps": [sweep.key for sweep in self.sweeps], "dynamic": dynamic}, sort_keys=True)

    @cached_property
    def factor(self) -> int:
        """How many rows one row becomes."""
        return factor_of(self.sweeps)

    def rows(self, row: Row, number: int) -> Iterator[Row]:
        """Yield the rows that row ``number`` becomes; the last sweep varies fastest.

        Raises:
            InputError: a choice in a prompt is wrong, or what comes of it is no valid row; it names field and value.
        """
        for position in range(self.factor):
            made = self._swept(row, position) if self.sweeps else row
            yield made if self.dynamic is None else self.dynamic.decide(made, number, position)

    def _swept(self, row: Row, position: int) -> Row:
        changes = {}
        for sweep in reversed(self.sweeps):
            position, place = divmod(position, len(sweep))
            changes[sweep.field] = sweep.value(place)
        # each value was checked as a row's would be, and no field depends on another
        return row.model_copy(update=changes)

"""Expand a row: the product of the sweeps, with the choices of dynamic prompts made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from latentfarm.errors import InputError
from latentfarm.job import Row
from latentfarm.submission.expansion.dynamic import DynamicPrompts, has_choices
from latentfarm.submission.expansion.sweeps import MAX_FACTOR, Sweep, factor_of, parse_sweeps
from latentfarm.submission.expansion.wildcards import Wildcards

__all__ = ["MAX_FACTOR", "Expansion", "has_choices"]


@dataclass(frozen=True)
class Expansion:
    """Sweeps and dynamic prompts.

    A swept value replaces the row's own. Each expanded row keeps the ``id`` and ``columns`` of its row. The product is
    never held in memory.
    """

    sweeps: tuple[Sweep, ...] = ()
    dynamic: DynamicPrompts | None = None

    @classmethod
    def parse(
        cls, sweeps: Sequence[str] = (), *, wildcards: Path | None = None, dynamic: bool = False, seed: int = 0
    ) -> Expansion:
        """Return the expansion for these options.

        Args:
            sweeps: ``FIELD=VALUES`` each; see ``parse_sweeps``.
            wildcards: the folder with a file ``name.txt`` for each ``__name__``, or with yaml or json files.
            dynamic: whether ``{a|b}`` and ``__name__`` in prompts and negative prompts are choices.
            seed: choices depend on it, on the row's number and on the position in the product.

        Raises:
            InputError: a sweep is invalid, or the folder cannot be read.
        """
        if wildcards is not None and not dynamic:
            raise InputError(f"wildcards {wildcards}: dynamic prompts are off; add --dynamic-prompts")
        dynamic_prompts = DynamicPrompts(seed, Wildcards(wildcards)) if dynamic else None
        return cls(parse_sweeps(sweeps), dynamic_prompts)

    @property
    def is_plain(self) -> bool:
        """Whether each row is left unchanged."""
        return not self.sweeps and self.dynamic is None

    @cached_property
    def key(self) -> str:
        """A text that differs if the expanded rows may differ; empty for a plain expansion.

        It contains the sweeps in order, the seed, and the digest of every wildcard file, used or not.
        """
        if self.is_plain:
            return ""
        dynamic = None if self.dynamic is None else self.dynamic.key
        return json.dumps({"sweeps": [sweep.key for sweep in self.sweeps], "dynamic": dynamic}, sort_keys=True)

    @cached_property
    def factor(self) -> int:
        """Number of rows that one row expands to."""
        return factor_of(self.sweeps)

    def rows(self, row: Row, number: int) -> Iterator[Row]:
        """Yield the expanded rows of row ``number``. The last sweep varies fastest.

        Raises:
            InputError: a choice in a prompt is invalid, or it gives an invalid row; the text has field and value.
        """
        for position in range(self.factor):
            swept = self._sweep(row, position) if self.sweeps else row
            yield swept if self.dynamic is None else self.dynamic.choose(swept, number, position, self.factor)

    def _sweep(self, row: Row, position: int) -> Row:
        changes = {}
        for sweep in reversed(self.sweeps):
            position, place = divmod(position, len(sweep))
            changes[sweep.field] = sweep.value(place)
        # each value was validated on its own, and no field depends on another
        return row.model_copy(update=changes)

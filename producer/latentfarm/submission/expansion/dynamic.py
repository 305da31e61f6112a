r"""Dynamic prompts: choices in a prompt, made with a seed.

- ``{red|blue}``: one of the two. ``{3::red|blue}``: red three times out of four.
- ``{2$$red|blue|green}``: two different ones, joined by ", ". ``{2$$ and $$red|blue|green}``: joined by " and ".
  ``{1-3$$...}``: one to three of them, ``{-2$$...}``: up to two, ``{2-$$...}``: two or more.
- ``__animals/cats__``: a line of ``animals/cats.txt`` in the folder of wildcards. ``__animals/*__``: of all that match.
- ``${c=red}``: a variable, used as ``${c}`` or ``${c:default}``; ``${c=!{red|blue}}`` is chosen once.
  ``__name(c=red)__`` sets it in the lines of a wildcard.
- ``%{a photo of ..., sharp$$a cat}``: the text in place of the dots.
- ``{@red|blue}``, ``__@name__``: one after the other, from row to row. ``# comment``.

All may be nested, also in a wildcard's lines. ``\`` before a special character makes it text. See ``grammar`` for where
the grammar is from, and ``chooser`` for how choices are made.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from latentfarm.errors import InputError
from latentfarm.job import Row
from latentfarm.submission.expansion.chooser import Chooser, SeededDraws
from latentfarm.submission.expansion.weights import ChoiceError
from latentfarm.submission.expansion.wildcards import Wildcards
from latentfarm.submission.prompts.notes import Notes
from latentfarm.submission.prompts.rows import abbreviate, describe_invalid

_FIELDS = ("prompt", "negative_prompt")
_validate = Row.__pydantic_validator__.validate_python

#: what a text without choices and comments does not have
_SPECIAL = re.compile(r"[{#]|__|^[^\S\n]*/[/*]", re.MULTILINE)
#: what is hardly ever meant as text
_CHOICE = re.compile(
    r"""(?<!\\) (?:
      \{ [^{}|]* \| [^{}]* \}
    | \{ \s* [~@!]? \s* (?: \d+ -? \d* | - \d+ ) \$\$
    | \$\{ \s* [A-Za-z_-] [\w-]* \s* [}:=?]
    | %\{ [^{}]* \$\$
    | (?<! _ ) __ (?= [^\s_] ) [^\n{}|]{0,200}? (?<= [^\s_] ) __ (?! _ )
    )""",
    re.VERBOSE,
)


def has_choices(text: str) -> bool:
    """Return whether a text has what ``--dynamic-prompts`` would choose: ``{a|b}``, ``__name__``, ``${name}``."""
    return ("{" in text or "__" in text) and _CHOICE.search(text) is not None


class DynamicPrompts:
    """Makes the choices of rows. They depend only on the seed, the row's number and the position in the product."""

    def __init__(self, seed: int, wildcards: Wildcards) -> None:
        self._seed = seed
        self._wildcards = wildcards
        #: what was chosen for the user
        self.notes = Notes()

    @property
    def key(self) -> dict[str, Any]:
        """Everything that the choices depend on, besides the row."""
        return {"seed": self._seed, "wildcards": self._wildcards.digests}

    def choose(self, row: Row, number: int, position: int, factor: int = 1) -> Row:
        """Return the row with its choices made.

        Args:
            row: a row of the product.
            number: of the row in the source.
            position: in the product.
            factor: the size of the product, so that cyclical choices go on from row to row.

        Raises:
            InputError: a choice is invalid, or it gives an invalid text.
        """
        changes: dict[str, str] = {}
        for field in _FIELDS:
            text = getattr(row, field)
            if text is None or _SPECIAL.search(text) is None:
                continue
            draws = SeededDraws(f"{self._seed}/{number}/{position}/{field}")
            chooser = Chooser(self._wildcards, draws, self.notes, turn=number * factor + position)
            try:
                changes[field] = chooser.choose(text)
            except (ChoiceError, InputError) as error:
                raise InputError(f"{field} {abbreviate(text)}: {error}") from None
        return _changed(row, changes) if changes else row


def _changed(row: Row, changes: dict[str, str]) -> Row:
    # choices can make a text too long
    for field, text in changes.items():
        try:
            _validate({"prompt": "-", field: text})
        except ValidationError as error:
            raise InputError(f"{field} {describe_invalid(error)}") from None
    if not changes.get("prompt", row.prompt).strip():
        raise InputError(
            f"prompt {abbreviate(row.prompt)} is empty after its choices; write an alternative that is not empty"
        )
    return row.model_copy(update=changes)

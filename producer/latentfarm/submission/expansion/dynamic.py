r"""Dynamic prompts: choices in a prompt, made with a seed.

- ``{red|blue}``: one of the two. ``{3::red|blue}``: red three times out of four.
- ``{2$$red|blue|green}``: two different ones, joined by ", ". ``{2$$ and $$red|blue|green}``: joined by " and ".
  ``{1-3$$red|blue|green}``: one to three of them.
- ``__animals/cats__``: a line of ``animals/cats.txt`` in the folder of wildcards.

All may be nested, also in a wildcard's lines. ``\{``, ``\}``, ``\|`` and ``\_`` are the characters themselves. A text
with neither ``{`` nor ``__`` is left unchanged.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from pydantic import ValidationError

from latentfarm.errors import InputError
from latentfarm.job import Row
from latentfarm.submission.expansion.wildcards import Wildcards
from latentfarm.submission.prompts.rows import abbreviate, describe_invalid

_MAX_DEPTH = 20
_MAX_CHOICES = 1000

#: text without special characters
_PLAIN = re.compile(r"[^\\{_]+")
_ESCAPED = re.compile(r"\\([{}|_])")
_WILDCARD = re.compile(r"__([A-Za-z0-9][\w./ -]*?)__")
_WEIGHT = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)::")
_COUNT = re.compile(r"\s*(\d{1,4})(?:-(\d{1,4}))?\$\$")
_JOINER = re.compile(r"([^|{}$]*)\$\$")
_DEFAULT_JOINER = ", "

_FIELDS = ("prompt", "negative_prompt")
_validate = Row.__pydantic_validator__.validate_python


class DynamicPrompts:
    """Makes the choices of rows. They depend only on the seed, the row's number and the position in the product."""

    def __init__(self, seed: int, wildcards: Wildcards) -> None:
        self._seed = seed
        self._wildcards = wildcards

    @property
    def key(self) -> dict[str, Any]:
        """Everything that the choices depend on, besides the row."""
        return {"seed": self._seed, "wildcards": self._wildcards.digests}

    def choose(self, row: Row, number: int, position: int) -> Row:
        """Return the row with its choices made.

        Raises:
            InputError: a choice is invalid, or it gives an invalid text.
        """
        changes: dict[str, str] = {}
        for field in _FIELDS:
            text = getattr(row, field)
            if text is None or ("{" not in text and "__" not in text):
                continue
            choices = _SeededChoices(f"{self._seed}/{number}/{position}/{field}")
            try:
                changes[field] = _Expander(self._wildcards, choices).expand(text, 0)
            except (_ChoiceError, InputError) as error:
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


class _ChoiceError(Exception):
    """A choice is invalid: problem and cure."""


class _SeededChoices:
    """Pseudo-random numbers that depend only on a key."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._drawn = 0

    def below(self, limit: int) -> int:
        """Return the next number, from 0 to ``limit - 1``."""
        self._drawn += 1
        if self._drawn > _MAX_CHOICES:
            raise _ChoiceError(f"it needs over {_MAX_CHOICES:,} choices; write fewer")
        digest = hashlib.blake2b(f"{self._key}/{self._drawn}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest) * limit) >> 64


class _Expander:
    """Makes the choices of one text."""

    def __init__(self, wildcards: Wildcards, choices: _SeededChoices) -> None:
        self._wildcards = wildcards
        self._choices = choices

    def expand(self, text: str, depth: int) -> str:
        """Return the text with all choices made."""
        if depth > _MAX_DEPTH:
            raise _ChoiceError(f"choices are nested over {_MAX_DEPTH} deep; does a wildcard contain itself?")
        done: list[str] = []
        at = 0
        while at < len(text):
            if plain := _PLAIN.match(text, at):
                done.append(plain[0])
                at = plain.end()
            elif escaped := _ESCAPED.match(text, at):
                done.append(escaped[1])
                at = escaped.end()
            elif text[at] == "{":
                end, alternatives = _alternatives(text, at)
                done.append(self._choice(alternatives, depth))
                at = end
            elif wildcard := _WILDCARD.match(text, at):
                lines = self._wildcards.lines(wildcard[1])
                done.append(self.expand(lines[self._choices.below(len(lines))], depth + 1))
                at = wildcard.end()
            else:
                done.append(text[at])
                at += 1
        return "".join(done)

    def _choice(self, alternatives: list[str], depth: int) -> str:
        least, most, joiner, first = _counted(alternatives[0])
        options = [_weighted(option) for option in [first, *alternatives[1:]]]
        possible = sum(weight > 0 for weight, _ in options)
        if most > possible:
            raise _ChoiceError(f"{most} of {possible} alternatives cannot be chosen; write at most {possible}")
        count = least + (self._choices.below(most - least + 1) if most > least else 0)
        picked = []
        for _ in range(count):
            option = self._pick(options)
            picked.append(self.expand(options.pop(option)[1], depth + 1))
        return joiner.join(picked)

    def _pick(self, options: list[tuple[int, str]]) -> int:
        left = self._choices.below(sum(weight for weight, _ in options))
        for place, (weight, _) in enumerate(options):
            left -= weight
            if left < 0:
                return place
        raise AssertionError("the weights add up to more than was drawn")  # pragma: no cover


def _alternatives(text: str, start: int) -> tuple[int, list[str]]:
    """Return the end of the braces that open at ``start``, and the alternatives in them."""
    found: list[str] = []
    depth, begun, at = 0, start + 1, start
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at + 1, [*found, text[begun:at]]
        elif text[at] == "|" and depth == 1:
            found.append(text[begun:at])
            begun = at + 1
        at += 1
    raise _ChoiceError(r"a { is not closed; write }, or \{ for the brace itself")


def _counted(first: str) -> tuple[int, int, str, str]:
    """Split the first alternative into least and most choices, joiner and text."""
    counted = _COUNT.match(first)
    if counted is None:
        return 1, 1, "", first
    least, most = int(counted[1]), int(counted[2] or counted[1])
    if most < least:
        raise _ChoiceError(f"{counted[0].strip()} is reversed; write {most}-{least}$$")
    rest = first[counted.end() :]
    joiner = _JOINER.match(rest)
    return (least, most, joiner[1], rest[joiner.end() :]) if joiner else (least, most, _DEFAULT_JOINER, rest)


def _weighted(option: str) -> tuple[int, str]:
    """Return an alternative's weight in millionths, so that sums are exact, and its text."""
    matched = _WEIGHT.match(option)
    if matched is None:
        return 1_000_000, option
    whole, _, part = matched[1].partition(".")
    return int(whole) * 1_000_000 + int(part.ljust(6, "0")), option[matched.end() :]

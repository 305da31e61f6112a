r"""AUTOMATIC1111's prompt syntax: brackets that weight words, BREAK, and prompts of any length.

``(x)`` has the weight 1.1, ``[x]`` has 1/1.1 and ``(x:1.2)`` has 1.2. Nested weights multiply. ``\(``, ``\)``, ``\[``,
``\]`` and ``\\`` are the characters themselves; any other backslash is removed. An unclosed bracket reaches to the end
of the prompt. A closing bracket without an opening one is text. ``BREAK`` begins a new chunk.

The syntax is that of ``parse_prompt_attention`` in modules/prompt_parser.py and ``tokenize_line`` in
modules/sd_hijack_clip.py of AUTOMATIC1111/stable-diffusion-webui, with two differences: BREAK ends the chunk inside
brackets too, and a weight such as 1.2.3 is text instead of an error. Prompt editing (``[a:b:0.5]``, ``[a|b]``) and
``AND`` are not supported: they are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

_FACTORS = {"(": 1.1, "[": 1 / 1.1}
_OPENED_BY = {")": "(", "]": "["}
#: a full chunk ends after a comma, if one is among its last 20 tokens; the web UI's default
_BACKTRACK = 20

_MARK = re.compile(
    r"""
      \\ (?P<escaped> [()\[\]\\]? )
    | (?P<opening> [(\[] )
    | : \s* (?P<weight> [+-]? (?: [0-9]+ \.? [0-9]* | \. [0-9]+ ) ) \s* (?= \) ) (?P<weighed> \) )
    | (?P<closing> [)\]] )
    | (?P<pause> \s* \b BREAK \b \s* )
    """,
    re.VERBOSE,
)


class WeightedText(NamedTuple):
    """A run of text of one weight."""

    text: str
    weight: float


class _Item:
    """An element of a prompt: text, the beginning or end of a bracket, or a BREAK.

    ``bracket``: ``(`` or ``[``. ``factor``: of a beginning; its end may set another.
    """

    def __init__(
        self, kind: Literal["text", "begin", "end", "break"], text: str = "", *, bracket: str = "", factor: float = 1.0
    ) -> None:
        self.kind, self.text, self.bracket, self.factor = kind, text, bracket, factor


def parse(prompt: str) -> list[list[WeightedText]]:
    """Return the sections between BREAKs, each as texts of different weights. Any prompt is valid."""
    sections: list[list[WeightedText]] = [[]]
    # by kind of bracket, a stack: the product of the factors of the brackets around the current text
    products = {bracket: [1.0] for bracket in _FACTORS}
    for item in _items(prompt):
        if item.kind == "break":
            sections.append([])
        elif item.kind == "begin":
            products[item.bracket].append(products[item.bracket][-1] * item.factor)
        elif item.kind == "end":
            products[item.bracket].pop()
        elif item.text:
            _append(sections[-1], WeightedText(item.text, products["("][-1] * products["["][-1]))
    return sections


def _append(section: list[WeightedText], piece: WeightedText) -> None:
    # texts of the same weight are tokenized together, as the web UI does
    if section and section[-1].weight == piece.weight:
        piece = WeightedText(section.pop().text + piece.text, piece.weight)
    section.append(piece)


def _items(prompt: str) -> list[_Item]:
    """Return the elements of a prompt, each bracket with its factor."""
    items: list[_Item] = []
    waiting: dict[str, list[_Item]] = {bracket: [] for bracket in _FACTORS}
    at = 0
    for mark in _MARK.finditer(prompt):
        items.append(_Item("text", prompt[at : mark.start()]))
        at = mark.end()
        if mark["escaped"] is not None:
            items.append(_Item("text", mark["escaped"]))
        elif mark["pause"]:
            items.append(_Item("break"))
        elif bracket := mark["opening"]:
            items.append(_Item("begin", bracket=bracket, factor=_FACTORS[bracket]))
            waiting[bracket].append(items[-1])
        elif waiting[bracket := _OPENED_BY[mark["weighed"] or mark["closing"]]]:
            begin = waiting[bracket].pop()
            if mark["weight"]:
                begin.factor = float(mark["weight"])
            items.append(_Item("end", bracket=bracket))
        else:
            items.append(_Item("text", mark[0]))
    return [*items, _Item("text", prompt[at:])]


class WeightedToken(NamedTuple):
    """A token's id and the factor of its hidden states. ``joined``: no chunk begins with it, but with one before it."""

    number: int
    weight: float
    joined: bool = False


def split_chunks(
    sections: Sequence[Sequence[WeightedToken]], *, room: int, comma: int | None
) -> list[Sequence[WeightedToken]]:
    """Split the tokens of each section into at least one chunk of at most ``room`` tokens.

    A full chunk moves the tokens after its last comma to the next chunk, if they are at most 20 and the next token is
    not a comma. Tokens that are joined stay in one chunk, if they are not more than a chunk has.
    """
    chunks = [chunk for section in sections for chunk in _cut(section, room, comma)]
    # a BREAK at the end adds no empty chunk
    return chunks[:-1] if len(chunks) > 1 and not chunks[-1] else chunks


def _cut(tokens: Sequence[WeightedToken], room: int, comma: int | None) -> Iterator[Sequence[WeightedToken]]:
    while len(tokens) > room:
        end = room
        if tokens[room].joined:
            end = next((at for at in range(room - 1, 0, -1) if not tokens[at].joined), room)
        elif tokens[room].number != comma:
            commas = (at for at in range(room - 1, max(-1, room - 1 - _BACKTRACK), -1) if tokens[at].number == comma)
            end = next(commas, room - 1) + 1
        yield tokens[:end]
        tokens = tokens[end:]
    yield tokens

r"""Prompts as AUTOMATIC1111's web UI writes them: brackets that weigh words, BREAK, and as many tokens as there are.

``(x)`` weighs x 1.1 times, ``[x]`` 1/1.1 times, ``(x:1.2)`` 1.2 times; nested, they multiply. ``\(``, ``\)``, ``\[``,
``\]`` and ``\\`` are the characters themselves, any other backslash is left out. A bracket that nothing closes reaches
to the end, one that closes nothing is text. ``BREAK`` begins a new chunk.

The meaning is that of ``parse_prompt_attention`` in modules/prompt_parser.py and of ``tokenize_line`` in
modules/sd_hijack_clip.py of AUTOMATIC1111/stable-diffusion-webui, with two differences: BREAK ends the chunk inside
brackets too, and a weight such as 1.2.3 is text instead of an error. Its prompt editing (``[a:b:0.5]``, ``[a|b]``),
``AND``, embeddings and ``<lora:...>`` are not known here: they are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

_FACTORS = {"(": 1.1, "[": 1 / 1.1}
_OPENED_BY = {")": "(", "]": "["}
#: a full chunk ends behind a comma among its last so many tokens; the web UI's default
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
    """A part of a prompt in its order: text, a bracket's beginning or end, or a BREAK.

    ``bracket`` is ``(`` or ``[``. ``factor``, of a beginning, is only known once its end was found.
    """

    def __init__(
        self, kind: Literal["text", "begin", "end", "break"], text: str = "", *, bracket: str = "", factor: float = 1.0
    ) -> None:
        self.kind, self.text, self.bracket, self.factor = kind, text, bracket, factor


def parse(prompt: str) -> list[list[WeightedText]]:
    """Return the sections between BREAKs, each as pieces of different weights; any text can be read."""
    sections: list[list[WeightedText]] = [[]]
    # of the brackets around a place, from the outermost on: the product of the factors so far
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
    # words are tokenized with their neighbours of the same weight
    if section and section[-1].weight == piece.weight:
        piece = WeightedText(section.pop().text + piece.text, piece.weight)
    section.append(piece)


def _items(prompt: str) -> list[_Item]:
    """Return the parts of a prompt, each bracket with the factor that it stands for."""
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


class WeighedToken(NamedTuple):
    """A token's id and what its states are multiplied by."""

    number: int
    weight: float


def chunked(
    sections: Sequence[Sequence[WeighedToken]], *, room: int, comma: int | None
) -> list[Sequence[WeighedToken]]:
    """Cut the tokens of each section into chunks of at most ``room``, one at least.

    A full chunk gives what stands behind its last comma, if that is no more than 20 tokens, to the next one, unless
    that begins with a comma.
    """
    chunks = [chunk for section in sections for chunk in _cut(section, room, comma)]
    # a BREAK at the end begins nothing
    return chunks[:-1] if len(chunks) > 1 and not chunks[-1] else chunks


def _cut(tokens: Sequence[WeighedToken], room: int, comma: int | None) -> Iterator[Sequence[WeighedToken]]:
    while len(tokens) > room:
        end = room
        if tokens[room].number != comma:
            commas = (at for at in range(room - 1, max(-1, room - 1 - _BACKTRACK), -1) if tokens[at].number == comma)
            end = next(commas, room - 1) + 1
        yield tokens[:end]
        tokens = tokens[end:]
    yield tokens

"""Parsing weighted prompts, and splitting their tokens into chunks; neither needs a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latentfarm_worker.text_encoders.prompt_weights import WeightedText, WeightedToken, parse, split_chunks

pytestmark = pytest.mark.unit

#: texts in which every mark occurs often
MARKED = st.lists(st.sampled_from([*"ab ,()[]\\:.+-129", "BREAK", " BREAK ", ":1.2)"]), max_size=60).map("".join)
WORDS = st.text(st.characters(exclude_characters="()[]\\", exclude_categories=["Cs"]), max_size=40)
ROOM, COMMA = 75, 7


def weights_of(prompt: str) -> list[tuple[str, Any]]:
    [section] = parse(prompt)
    return [(piece.text, pytest.approx(piece.weight)) for piece in section]


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("", []),
        ("a cat", [("a cat", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("((a)) [b]", [("a", 1.21), (" ", 1), ("b", 1 / 1.1)]),
        ("(a:1.3)(b:.5)(c:2.)(d:+1)(e: -0.25 )", [("a", 1.3), ("b", 0.5), ("c", 2), ("d", 1), ("e", -0.25)]),
        ("(a (b:1.5) c:0.5)", [("a ", 0.5), ("b", 0.75), (" c", 0.5)]),
        ("[a [b]:2]", [("a ", 1 / 1.1), ("b", 1 / 1.21), (":2", 1 / 1.1)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("([a])b", [("ab", 1)]),
        # marks that are text
        (r"\(a\) \[b\] \\ c\d\e", [(r"(a) [b] \ cde", 1)]),
        ("a\\", [("a", 1)]),
        ("ratio 3:2, :1.2), a) b]", [("ratio 3:2, :1.2), a) b]", 1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        # what is not closed reaches to the end, and the two kinds do not see each other
        ("a (b [c", [("a ", 1), ("b ", 1.1), ("c", 1)]),
        ("(a [b) c] d", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1), (" d", 1)]),
        ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).", [("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1),
         (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)]),
    ],
)  # fmt: skip
def test_brackets_weight_the_text_inside(prompt: str, pieces: list[tuple[str, float]]) -> None:
    assert weights_of(prompt) == pieces


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a BREAK b", [["a"], ["b"]]),
        ("a\nBREAK\n\nb BREAK", [["a"], ["b"], []]),
        ("BREAK", [[], []]),
        ("BREAKS aBREAK break BREAK_", [["BREAKS aBREAK break BREAK_"]]),
        ("(a BREAK b)", [["a"], ["b"]]),
    ],
)
def test_break_begins_a_section(prompt: str, sections: list[list[str]]) -> None:
    assert [[piece.text for piece in section] for section in parse(prompt)] == sections


def test_brackets_continue_after_a_break() -> None:
    assert parse("(a BREAK b:2) c") == [[WeightedText("a", 2.0)], [WeightedText("b", 2.0), WeightedText(" c", 1.0)]]


@given(st.one_of(st.text(), MARKED))
@example("(" * 4096)
@example(":" + "9" * 400 + ")" + "(a:" + "9" * 400 + ")")
def test_any_text_is_parsed_and_loses_only_its_marks(prompt: str) -> None:
    sections = parse(prompt)
    kept = "".join(piece.text for section in sections for piece in section)
    letters = iter(prompt)
    assert all(letter in letters for letter in kept)  # in their order
    for section in sections:
        assert all(piece.text for piece in section)
        assert all(one.weight != other.weight for one, other in pairwise(section))


@given(WORDS.filter(lambda text: "BREAK" not in text))
def test_a_text_without_marks_is_unchanged(text: str) -> None:
    assert parse(text) == [[WeightedText(text, 1.0)] if text else []]


@given(MARKED.filter(lambda text: "BREAK" not in text))
def test_escaped_text_is_unchanged(text: str) -> None:
    escaped = "".join(f"\\{letter}" if letter in "()[]\\" else letter for letter in text)
    assert "".join(piece.text for piece in parse(escaped)[0]) == text
    assert all(piece.weight == 1.0 for piece in parse(escaped)[0])


@given(st.lists(st.one_of(st.sampled_from(["()", "[]"]), st.floats(-2, 2).map(lambda each: round(each, 3)))))
def test_a_weight_is_the_product_of_its_brackets(brackets: Sequence[str | float]) -> None:
    prompt, product = "x", 1.0
    for each in brackets:
        if isinstance(each, float):
            prompt, product = f"({prompt}:{each:.3f})", product * each
        else:
            prompt, product = f"{each[0]}{prompt}{each[1]}", product * (1.1 if each == "()" else 1 / 1.1)
    [[piece]] = parse(prompt)
    assert piece.text == "x"
    assert math.isclose(piece.weight, product, rel_tol=1e-9)


def tokens(numbers: Sequence[int]) -> list[WeightedToken]:
    return [WeightedToken(number, 1.0) for number in numbers]


def lengths(*sections: Sequence[int]) -> list[int]:
    return [len(chunk) for chunk in split_chunks([tokens(section) for section in sections], room=ROOM, comma=COMMA)]


def test_chunks_are_filled() -> None:
    assert [lengths([1] * count) for count in (0, 1, 75, 76, 150, 200)] == [
        [0], [1], [75], [75, 1], [75, 75], [75, 75, 50]]  # fmt: skip


def test_a_break_ends_a_chunk_and_one_at_the_end_adds_none() -> None:
    assert lengths([1] * 3, [1] * 80, []) == [3, 75, 5]
    assert lengths([], [1]) == [0, 1]
    assert lengths([], []) == [0]
    assert lengths([1] * 75, [1]) == [75, 1]


@pytest.mark.parametrize(
    ("comma", "cut"),
    [(74, 75), (73, 74), (55, 56), (54, 75), (0, 75)],
)
def test_a_full_chunk_ends_after_a_near_comma(comma: int, cut: int) -> None:
    words = [1] * 100
    words[comma] = COMMA
    assert lengths(words) == [cut, 100 - cut]


def test_a_comma_right_after_a_full_chunk_keeps_it_full() -> None:
    words = [1] * 100
    words[70] = words[75] = COMMA
    assert lengths(words) == [75, 25]


@given(st.lists(st.lists(st.sampled_from([1, 2, COMMA]), max_size=400), min_size=1, max_size=5), st.integers(1, 80))
def test_chunks_lose_no_token_and_keep_to_their_room(sections: list[list[int]], room: int) -> None:
    chunks = split_chunks([tokens(section) for section in sections], room=room, comma=COMMA)
    assert chunks
    assert max(map(len, chunks)) <= room
    assert [token.number for chunk in chunks for token in chunk] == [each for section in sections for each in section]

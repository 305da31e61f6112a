from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentfarm.errors import InputError
from latentfarm.job import Row
from latentfarm.submission.expansion import Expansion, has_choices
from latentfarm.submission.expansion.grammar import parse
from latentfarm.submission.expansion.weights import ChoiceError
from latentfarm.submission.prompts import ReadOptions
from latentfarm.submission.request import make_request

pytestmark = pytest.mark.unit

TOKENS = ["{", "}", "|", "${", "%{", "__", "a", "x ", "(", ")", "=", ",", ":", "$$", "2$$", "-3$$", "3::", "~", "@"]
TOKENS += ["!", "#", "# ", "//", "/*", "*/", "\\", "...", "\n", "_", "c=", "{a|b}", "${c=!", "__x__", "__x(c=1)__"]
TEXTS = st.lists(st.sampled_from(TOKENS), max_size=25).map("".join)


@settings(max_examples=200)
@given(TEXTS | st.text(max_size=80))
def test_any_text_is_a_tree_or_an_error_with_a_cure(text: str) -> None:
    try:
        assert parse(text) is parse(text)
    except ChoiceError as error:
        assert "; " in str(error)  # noqa: PT017 - not raising is as good


@settings(max_examples=200)
@given(TEXTS)
def test_no_syntax_passes_as_text(text: str) -> None:
    if not text.strip() or "\\" in text:
        return
    expansion = Expansion.parse(dynamic=True)
    try:
        [row] = expansion.rows(Row(prompt=text), 0)
    except InputError:
        return
    assert not has_choices(row.prompt)
    assert not any(mark in row.prompt for mark in ("{", "__x__", "# "))


@pytest.mark.parametrize(
    "text",
    [
        "{" * 4096,
        "{a|" * 1365,
        "{2$$a|" * 600,
        "__" * 2048,
        "__a{" * 1000,
        "__a(b=" * 680,
        "__a " * 1000,
        "${" * 2048,
        "${a=" * 1000,
        "%{" * 2048,
        "{a|b}" * 819,
        "{1000$$" + "a|" * 2000 + "}",
        "{@500$$" + "a|" * 2000 + "}",
        "#" * 4096,
        " //" * 1365,
        "\n" * 4090 + "# a",
        "/*" * 2048,
        "\\" * 4096,
        "(" * 4090 + "{a|b}",
        "${a=xx}"
        + "".join(
            f"${{{new}=${{{old}}}${{{old}}}}}" for old, new in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
        )
        + "${p}",
    ],
    ids=lambda text: text[:6],
)
def test_four_kilobytes_are_cheap(text: str) -> None:
    expansion = Expansion.parse(dynamic=True)
    has_choices(text)
    begun = time.process_time()
    try:
        list(expansion.rows(Row(prompt=text), 0))
    except InputError as error:
        assert "; " in str(error)  # noqa: PT017 - not raising is as good
    assert time.process_time() - begun < 5


def test_a_text_is_parsed_once() -> None:
    before = parse.cache_info().misses
    expansion = Expansion.parse(["seed=1..50"], dynamic=True)
    list(expansion.rows(Row(prompt="{only|here}, parsed once"), 0))
    assert parse.cache_info().misses == before + 1


def test_a_nested_variable_that_multiplies_is_stopped() -> None:
    names = "abcdefghijklmnopqr"
    text = "${a=x}" + "".join(f"${{{new}={f'${{{old}}}' * 4}}}" for old, new in pairwise(names))
    with pytest.raises(InputError, match=r"it needs over 10,000 steps; write fewer variables and choices"):
        list(Expansion.parse(dynamic=True).rows(Row(prompt=text + "${r}"), 0))


def test_the_choices_of_new_syntax_are_the_same_everywhere() -> None:
    # a change here would change the images of existing batches
    expansion = Expansion.parse(dynamic=True, seed=3)
    text = (
        "${c=!{red|green|blue}} {2-$$ & $$a|b|c} ${c} {-2$$x|y|z} %{{big|small} ... here$$${d:{cat|dog}}} {@p|q} {!r|s}"
    )
    made = [row.prompt for number in range(4) for row in expansion.rows(Row(prompt=text), number)]
    assert made == [
        "c & b & a green z, x big cat here p r",
        "b & c & a green x big cat here q s",
        "a & c red y, x small dog here p r",
        "c & b & a green z, y small dog here q s",
    ]


def test_notes_are_of_one_reading() -> None:
    request = make_request(["{a} # b"] * 3, ReadOptions(), model="mini", expansion=Expansion.parse(dynamic=True))
    for _ in range(2):
        assert len(list(request.rows())) == 3
        assert set(request.notes.values()) == {3}
    assert "comments in dynamic prompts are left out" in request.notes

from __future__ import annotations

import pytest

from latentfarm.errors import InputError
from latentfarm.job import Defaults, Row
from latentfarm.submission.prompt_weights import check_weights, looks_weighted
from latentfarm.submission.prompts import ReadOptions
from latentfarm.submission.request import make_request

pytestmark = pytest.mark.unit

A1111 = Defaults(prompt_syntax="a1111")


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("a (red)1.3 ball", r"(red)1.3 is a weight of compel; write (red:1.3), or (red)\1.3 for the text itself"),
        ("a (red).5, ball", "(red).5 is a weight of compel; write (red:.5),"),
        ("a (very (dark) red)2 ball", "(very (dark) red)2 is a weight of compel; write (very (dark) red:2),"),
        ("a red++ ball", r"red++ is a weight of compel; write (red:1.21), or red\++ for the text itself"),
        ("a ball, red--", "red-- is a weight of compel; write (red:0.81),"),
        ("a (red ball)+, big", "(red ball)+ is a weight of compel; write (red ball:1.1),"),
        ("a (red ball)---", "(red ball)--- is a weight of compel; write (red ball:0.729),"),
        ("a (red ball)-, big", "(red ball)- is a weight of compel; write (red ball:0.9),"),
        ("(sky-blue++) sea", "sky-blue++ is a weight of compel; write (sky-blue:1.21),"),
        ("(a cat, a dog).and()", ".and() is compel's and is not supported; write BREAK between the parts"),
        ('("a cat", "a dog").blend(0.5, 0.5)', ".blend() is compel's and is not supported; write one prompt"),
        ("a cat.swap(dog) runs", ".swap() is compel's and is not supported; write the other words only"),
    ],
)
def test_a_weight_of_compel_is_an_error_in_a1111_syntax(prompt: str, problem: str) -> None:
    for row in (Row(prompt=prompt), Row(prompt="a", negative_prompt=prompt)):
        with pytest.raises(InputError) as caught:
            check_weights(row, A1111)
        assert problem in str(caught.value)
        check_weights(row, Defaults())
    with pytest.raises(InputError, match="compel"):
        check_weights(Row(prompt=prompt, prompt_syntax="a1111"), Defaults())
    check_weights(Row(prompt=prompt, prompt_syntax="plain"), A1111)


@pytest.mark.parametrize(
    "prompt",
    [
        "C++ code on a screen",
        "a book on c++, g++ and Notepad++, Dev-C++",
        "a--b, well--known, a cat -- sleeping",
        "a Disney+ logo, an A+ grade, 18+, 5-",
        "photo (c)2024, (solo)1girl, (1990)s",
        r"a (red:1.3) (ball) [blue] \(x\)1.3 red\++ (red)\1.3",
        "(unbalanced, a) b) [c",
        "(detailed)-style, (a)-b",
        "(best) 2 cats, (50)% off",
        "Jack and (Jill). and (others)",
        "",
    ],
)
def test_text_is_no_weight_of_compel(prompt: str) -> None:
    check_weights(Row(prompt=prompt), A1111)


def test_rows_and_defaults_that_set_the_syntax_are_checked() -> None:
    by_default = make_request(["a red++ ball", "C++"], ReadOptions(), model="mini", prompt_syntax="a1111")
    assert [str(getattr(row, "text", "valid"))[:40] for _, row in by_default.rows()] == [
        "row 1: prompt 'a red++ ball': red++ is a",
        "valid",
    ]
    by_row = make_request([{"prompt": "(red)1.3", "prompt_syntax": "a1111"}], ReadOptions(), model="mini")
    assert "write (red:1.3)" in next(str(row) for _, row in by_row.rows())
    both = make_request(
        [{"prompt": "a", "prompt_syntax": "a1111"}], ReadOptions(), model="mini", negative_prompt="red++"
    )
    assert "negative_prompt 'red++': red++ is a weight" in next(str(row) for _, row in both.rows())
    with pytest.raises(InputError, match=r"options: negative_prompt 'dark\+\+': dark\+\+ is a weight of compel"):
        make_request(["a"], ReadOptions(), model="mini", prompt_syntax="a1111", negative_prompt="dark++")


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("a (red:1.3) ball", "weights such as (red:1.3)"),
        ("((masterpiece)), a cat", "weights such as (red:1.3)"),
        ("[[dark]] cat", "weights such as (red:1.3)"),
        ("a red++ ball", "weights such as red++"),
        ("(red)1.3", "weights such as red++"),
    ],
)
def test_a_plain_prompt_that_looks_weighted_is_noted(prompt: str, note: str) -> None:
    assert (looks_weighted(prompt) or "").startswith(note)


@pytest.mark.parametrize("prompt", ["C++", "a photo (16:9)", "a cat (at 10:30)", "a (red) [blue] cat", "16:9", ":)"])
def test_a_plain_prompt_without_weights_is_not_noted(prompt: str) -> None:
    assert looks_weighted(prompt) is None


def test_a_long_prompt_is_searched_in_no_time() -> None:
    for text in (
        "(" * 4096,
        "(a:" * 1365,
        ")" * 4096,
        "a" * 4000 + "++x",
        "a-" * 2000 + "++ x",
        "((a" * 1300,
        "+" * 4096,
    ):
        check_weights(Row(prompt=text), A1111)
        looks_weighted(text)

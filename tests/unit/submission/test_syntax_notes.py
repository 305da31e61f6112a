"""What looks like syntax in a prompt and is rendered as written."""

from __future__ import annotations

from typing import Any

import pytest

from latentfarm.adapter_kind import AdapterKind
from latentfarm.model_facts import ModelFacts
from latentfarm.submission.estimate import make_estimate
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.request import make_request

pytestmark = pytest.mark.unit


def notes_of(prompts: list[str], *, dynamic: bool = False, **defaults: Any) -> dict[str, int]:
    request = make_request(prompts, model="mini", expansion=Expansion.parse(dynamic=dynamic), **defaults)
    return make_estimate(request, throughput=None, count_tokens=None).notes


@pytest.mark.parametrize(
    ("prompt", "beginning"),
    [
        ("a {red|blue} cat", "choices such as {a|b} and __name__ are rendered as written; add --dynamic-prompts"),
        ("a __colour__ cat", "choices such as {a|b}"),
        ("a (red:1.3) cat", "weights such as (red:1.3) are rendered as written; add --prompt-syntax a1111"),
        ("a red++ cat", "weights such as red++ are rendered as written; write (red:1.3) and add"),
        ("a cat <lora:fur:0.8>", "<lora:name:scale> is rendered as written; add --prompt-syntax"),
        ("a cat --ar 16:9", "flags such as --steps 20 in a prompt are rendered as written"),
    ],
)
def test_syntax_that_is_not_read_is_noted_once_a_row(prompt: str, beginning: str) -> None:
    [(sentence, rows)] = notes_of([prompt, f"{prompt} and {prompt}", "a dog"]).items()
    assert sentence.startswith(beginning)
    assert rows == 2


@pytest.mark.parametrize("prompt", ["a cat (small)", "C++ on a screen", "a - b", "f{x}", "snake_case__", "[1] a list"])
def test_text_is_not_noted(prompt: str) -> None:
    assert notes_of([prompt]) == {}


def test_syntax_that_is_read_is_not_noted() -> None:
    assert notes_of(["a {red|blue} (cat:1.2)"], dynamic=True, prompt_syntax="a1111") == {}


@pytest.mark.parametrize(
    ("adapters", "noted"),
    [
        (None, []),
        ({}, []),
        ({AdapterKind.LORA: ("nest",)}, []),
        (
            {AdapterKind.EMBEDDING: ("nested", "Toy")},
            ["<names> of no embedding are rendered as written; the model's workers have <nested>, <toy>"],
        ),
    ],
)
def test_a_name_of_no_embedding_is_noted_where_workers_have_some(
    adapters: dict[AdapterKind, tuple[str, ...]] | None, noted: list[str]
) -> None:
    facts = ModelFacts(pipeline="p", model_digest="d", native_width=64, native_height=64, adapters=adapters)
    prompts = ["a <nest> hut", "a <NESTED> hut, <toy>", "3 < 4 > 2", "<lora:x:1> -> <a b>"]
    request = make_request(prompts, model="m", prompt_syntax="a1111").with_facts(facts)
    list(request.rows())
    assert [*request.source.notes] == noted
    assert all(rows == 1 for rows in request.source.notes.values())

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import prompt_files

from latentfarm.errors import InputError
from latentfarm.job import Row
from latentfarm.submission.prompts import LocatedRow, Notes, check_defaults

pytestmark = pytest.mark.unit


def test_txt_skips_blank_lines_and_comments(tmp_path: Path) -> None:
    text = "\ufeffa cat\n\n# no prompt\n  a dog  \r\nc'est l'été"
    assert [row.prompt for row in prompt_files.rows(tmp_path / "p.txt", text)] == ["a cat", "a dog", "c'est l'été"]


@pytest.mark.parametrize("line", ["Negative prompt: blurry", "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"])
def test_a_line_of_a1111s_image_parameters_is_no_prompt(tmp_path: Path, line: str) -> None:
    [(reason, text)] = prompt_files.row_errors(tmp_path / "p.txt", f"a cat\n{line}\n")
    assert reason == "image parameters"
    assert text.startswith(f"p.txt line 2: '{line}' is a line of AUTOMATIC1111's image parameters, not a prompt;")


def test_jsonl_has_diffusers_names_and_null_is_a_missing_field(tmp_path: Path) -> None:
    line = '{"prompt": "a", "num_inference_steps": 30, "seed": null, "id": "x", "unknown": null}\n\n'
    [found] = prompt_files.found(tmp_path / "prompts.jsonl", line)
    assert found == LocatedRow("prompts.jsonl line 1", Row(prompt="a", num_inference_steps=30, id="x"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"prompt": "a", "width": 1030}',
            "p.jsonl line 1: width 1030 is not a multiple of 8; write 1024 or 1032",
        ),
        ('{"prompt": "a", "widht": 64}', "p.jsonl line 1: field 'widht' (64) is not known; did you mean 'width'?"),
        ('{"promt": "a"}', 'p.jsonl line 1: prompt is missing; write "prompt": "..."'),
        ('{"prompt": "a", "seed": "x"}', "p.jsonl line 1: seed 'x' is invalid; write a valid integer"),
        (
            '{"prompt": "a", "num_inference_steps": 501}',
            "p.jsonl line 1: num_inference_steps 501 is invalid; ",
        ),
        (
            '{"prompt": "a", "scheduler": "eulr"}',
            "p.jsonl line 1: scheduler 'eulr' is not known; did you mean 'euler'?",
        ),
        ('{"prompt": " "}', "p.jsonl line 1: prompt '' is empty; describe the image"),
        ('{"prompt": "a",}', "p.jsonl line 1 column 1"),
        ('["a"]', "p.jsonl line 1: '[\"a\"]' is a list"),
        ("[" * 100_000, "p.jsonl line 1 column 1"),
    ],
)
def test_an_invalid_row_is_reported_with_place_field_value_and_cure(tmp_path: Path, line: str, message: str) -> None:
    [(_, text)] = prompt_files.row_errors(tmp_path / "p.jsonl", line)
    assert text.startswith(message)


def test_every_error_of_a_row_is_reported_and_the_first_is_its_reason(tmp_path: Path) -> None:
    [(reason, text)] = prompt_files.row_errors(
        tmp_path / "p.jsonl", '{"prompt": "a", "width": 1, "seed": -2, "sead": 2}'
    )
    assert reason == "width"
    assert [line.split()[3] for line in text.split("\n")] == ["width", "seed", "field"]


def test_bytes_that_are_not_utf8_are_reported_with_their_place(tmp_path: Path) -> None:
    assert prompt_files.row_errors(tmp_path / "p.txt", b"fine\ncaf\xe9\n") == [
        (
            "not UTF-8",
            "p.txt line 2: byte 4 is 0xe9, which is not UTF-8 (in Windows-1252 it is 'é'); save the file as UTF-8",
        )
    ]


def test_invalid_defaults_are_refused_like_rows() -> None:
    with pytest.raises(InputError, match="options: height 100 is not a multiple of 8; write 96 or 104"):
        check_defaults({"height": 100}, Notes())


PROMPTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@given(st.lists(PROMPTS, min_size=1, max_size=5))
def test_jsonl_keeps_every_prompt_unchanged(tmp_path_factory: pytest.TempPathFactory, prompts: list[str]) -> None:
    text = "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts)
    read = prompt_files.rows(tmp_path_factory.getbasetemp() / "same.jsonl", text)
    assert [row.prompt for row in read] == prompts


@given(
    st.lists(
        PROMPTS.filter(lambda text: len(f"a {text}".splitlines()) == 1 and "-" not in text), min_size=1, max_size=5
    )
)
def test_txt_keeps_every_prompt_but_the_space_around_it(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str]
) -> None:
    read = prompt_files.rows(
        tmp_path_factory.getbasetemp() / "same.txt", "\n".join(f"a {prompt}" for prompt in prompts)
    )
    assert [row.prompt for row in read] == [f"a {prompt}".strip() for prompt in prompts]

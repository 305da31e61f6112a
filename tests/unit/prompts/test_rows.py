from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.errors import InputError, InvalidRowsError
from latentfarm.job import Row
from latentfarm.prompts import PlacedRow, Problem, check_all, check_defaults, read_file, read_rows

pytestmark = pytest.mark.unit


def problems(file: Path) -> list[str]:
    return [found.text for found in read_file(file) if isinstance(found, Problem)]


def test_txt_skips_blank_lines_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa cat\n\n# no prompt\n  a dog  \r\nc'est l'été".encode())
    rows = [found.row.prompt for found in read_file(file) if isinstance(found, PlacedRow)]
    assert rows == ["a cat", "a dog", "c'est l'été"]


def test_jsonl_takes_diffusers_names_and_null_means_not_given(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "num_inference_steps": 30, "seed": null, "id": "x"}\n\n')
    [found] = read_file(file)
    assert found == PlacedRow("prompts.jsonl line 1", Row(prompt="a", num_inference_steps=30, id="x"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            '{"prompt": "a", "width": 1030}',
            "p.jsonl line 1: width 1030 is not a multiple of 8; write 1024 or 1032",
        ),
        ('{"prompt": "a", "widht": 64}', "p.jsonl line 1: field 'widht' (64) is not known; did you mean 'width'?"),
        ('{"promt": "a"}', 'p.jsonl line 1: prompt is missing; write "prompt": "..."'),
        ('{"prompt": "a", "seed": "x"}', "p.jsonl line 1: seed 'x' is wrong; write a valid integer"),
        ('{"prompt": "a", "num_inference_steps": 501}', "p.jsonl line 1: num_inference_steps 501 is wrong; write less"),
        (
            '{"prompt": "a", "scheduler": "eulr"}',
            "p.jsonl line 1: scheduler 'eulr' is not known; did you mean 'euler'?",
        ),
        ('{"prompt": " "}', "p.jsonl line 1: prompt '' is empty; write what the picture shows"),
        ('{"prompt": "a",}', "p.jsonl line 1 column 1"),
        ('["a"]', "p.jsonl line 1: '[\"a\"]' is no object"),
        ("[" * 100_000, "p.jsonl line 1 column 1"),
    ],
)
def test_a_wrong_row_is_told_with_place_field_value_and_cure(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(line)
    assert any(text.startswith(told) for text in "\n".join(problems(file)).split("\n"))


def test_bytes_that_are_no_utf8_are_told_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes(b"fine\ncaf\xe9\n")
    assert problems(file) == ["p.txt line 2: byte 4 is 0xe9, which is no UTF-8; save the file as UTF-8"]


def test_twenty_wrong_rows_are_told_and_the_rest_counted() -> None:
    with pytest.raises(InvalidRowsError) as caught:
        check_all(read_rows([{"prompt": "a", "width": 1}] * 25), where="rows")
    lines = str(caught.value).split("\n")
    assert (len(lines), lines[-2], lines[-1]) == (22, "... and 5 more", "25 problems; nothing was enqueued")


@pytest.mark.parametrize("name", ["none.txt", "prompts.docx", "folder.txt"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match=name):
        list(read_file(tmp_path / name))


def test_a_file_without_prompts_is_refused() -> None:
    with pytest.raises(InputError, match="holds no prompt"):
        check_all([], where="prompts.txt")


def test_wrong_defaults_are_refused_like_rows() -> None:
    with pytest.raises(InputError, match="options: height 100 is not a multiple of 8; write 96 or 104"):
        check_defaults({"height": 100})


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip),
        min_size=1,
        max_size=5,
    )
)
def test_every_prompt_of_a_jsonl_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str]
) -> None:
    file = tmp_path_factory.getbasetemp() / "same.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts), newline=""
    )
    assert [found.row.prompt for found in read_file(file) if isinstance(found, PlacedRow)] == prompts

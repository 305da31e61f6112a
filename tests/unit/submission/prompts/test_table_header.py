"""Headers of tables: other delimiters, columns without a name, and the column of the prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import prompt_files

from latentfarm.errors import InputError
from latentfarm.submission.prompts import ReadOptions, open_source

pytestmark = pytest.mark.unit


def notes_of(file: Path) -> dict[str, int]:
    source = open_source(file)
    list(source.read())
    return dict(source.notes)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("p.csv", "prompt;seed\na cat, red;5\n", "a semicolon"),
        ("p.csv", '"Prompt";"seed"\r\n"a cat, red";5\r\n', "a semicolon"),
        ("p.csv", "prompt\tseed\na cat, red\t5\n", "a tab"),
        ("p.csv", "seed|prompt\n5|a cat, red\n", "a vertical bar"),
        ("p.tsv", 'prompt,seed\n"a cat, red",5\n', "a comma"),
    ],
)
def test_another_delimiter_is_used_if_only_with_it_the_header_has_prompts(
    tmp_path: Path, name: str, content: str, what: str
) -> None:
    [row] = prompt_files.rows(tmp_path / name, content)
    assert prompt_files.given(row) == {"prompt": "a cat, red", "seed": 5}
    assert notes_of(tmp_path / name)[f"cells are separated by {what}, as the header shows"] == 1


@pytest.mark.parametrize("first", ["sep=;\n", '"sep=;"\r\n', "\ufeffSEP=;\r\n"])
def test_excels_first_line_names_the_delimiter(tmp_path: Path, first: str) -> None:
    [row] = prompt_files.rows(tmp_path / "p.csv", f"{first}prompt;seed\na, b;5\n")
    assert prompt_files.given(row) == {"prompt": "a, b", "seed": 5}
    assert notes_of(tmp_path / "p.csv") == {"cells are separated by a semicolon: the first line names it": 1}
    with pytest.raises(InputError, match="the delimiter ':' is not supported; save the table with commas"):
        prompt_files.found(tmp_path / "p.csv", "sep=:\nprompt:seed\n")


@pytest.mark.parametrize(
    "header", ["Prompt,SEED", "prompt , seed", '\ufeff"PROMPT" , "Seed"', '"prompt","seed"', "\n\nPrompts,Seed"]
)
def test_a_header_may_have_capitals_space_and_quotes(tmp_path: Path, header: str) -> None:
    [row] = prompt_files.rows(tmp_path / "p.csv", f"{header}\na cat,5\n")
    assert prompt_files.given(row) == {"prompt": "a cat", "seed": 5}


def test_the_only_column_without_another_meaning_is_the_prompts(tmp_path: Path) -> None:
    entries = prompt_files.found(tmp_path / "p.csv", "seed,description\n5,a cat\n6,12\n7,\n")
    assert [type(entry).__name__ for entry in entries] == ["LocatedRow", "RowError", "RowError"]
    assert prompt_files.row_errors(tmp_path / "p.csv", "seed,description\n5,12\n") == [
        (
            "prompt",
            "p.csv line 2: column 'description' has '12', not a text; name the column of prompts with --prompt-column",
        )
    ]
    [row] = prompt_files.rows(tmp_path / "p.csv", "seed,description\n5,a cat\n")
    assert prompt_files.given(row) == {"prompt": "a cat", "seed": 5}
    assert notes_of(tmp_path / "p.csv") == {
        "'description' is read as prompt: it is the only column without another meaning": 1
    }


@pytest.mark.parametrize(
    ("header", "options"),
    [
        ("description", ReadOptions()),
        ("row,description,seed", ReadOptions()),
        ("description,seed", prompt_files.KEEP),
        ("description,seed", ReadOptions(prompt_column="caption")),
        ("a cat,in a hat", ReadOptions()),
    ],
)
def test_a_column_is_not_chosen_if_it_may_be_another(tmp_path: Path, header: str, options: ReadOptions) -> None:
    with pytest.raises(InputError, match="the header has no column"):
        prompt_files.found(tmp_path / "p.csv", f"{header}\nx,y\n", options)


def test_unnamed_columns_at_the_end_must_be_empty(tmp_path: Path) -> None:
    for name, tab in (("p.csv", ","), ("p.tsv", "\t")):
        content = "prompt,seed,,\na,5,,\nb,6\nc,7,x\nd,8,,,\n".replace(",", tab)
        errors = prompt_files.row_errors(tmp_path / name, content)
        assert [reason for reason, _ in errors] == ["unnamed column", "ragged row"]
        assert errors[0][1] == f"{name} line 4: 'x' is in a column without a name; name it in the header"
        assert notes_of(tmp_path / name) == {
            "the empty cells of the last column, which has no name, are passed over": 2
        }


@pytest.mark.parametrize("index", ["", "Unnamed: 0"])
def test_the_index_of_pandas_is_passed_over(tmp_path: Path, index: str) -> None:
    content = f"{index},prompt\n0,a cat\n1,a dog\n"
    assert [row.prompt for row in prompt_files.rows(tmp_path / "p.csv", content)] == ["a cat", "a dog"]
    [note] = notes_of(tmp_path / "p.csv")
    assert note.endswith("is passed over: it is the index of pandas")


def test_a_first_column_without_a_name_that_is_no_index_is_an_error(tmp_path: Path) -> None:
    assert prompt_files.row_errors(tmp_path / "p.csv", ",prompt\nbig,a cat\n") == [
        ("unnamed column", "p.csv line 2: 'big' is in a column without a name; name it in the header")
    ]


def test_rows_of_delimiters_alone_are_passed_over_and_short_rows_are_errors(tmp_path: Path) -> None:
    content = "prompt,seed\n\na,5\n,\nb\nc,6,\n"
    errors = prompt_files.row_errors(tmp_path / "p.csv", content)
    assert [text.partition(": ")[0] for _, text in errors] == ["p.csv line 5", "p.csv line 6"]
    assert notes_of(tmp_path / "p.csv") == {"rows without any text are passed over": 1}


def test_a_style_of_a1111_is_no_prompt(tmp_path: Path) -> None:
    content = 'name,prompt,negative_prompt\nArt,"{prompt}, oil on canvas",photo\nPhoto,a cat,\n'
    assert prompt_files.row_errors(tmp_path / "p.csv", content, prompt_files.KEEP) == [
        (
            "a style",
            "p.csv line 2: prompt '{prompt}, oil on canvas' is a style: write the prompt in place of {prompt}",
        )
    ]


@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.txt", "p.jsonl"])
def test_a_lone_cr_ends_a_line_of_a_file_without_lf(tmp_path: Path, name: str) -> None:
    rows = {"p.txt": ["a", "b"], "p.jsonl": ['{"prompt": "a"}', '"b"']}.get(name, ["prompt", "a", "b"])
    read = prompt_files.rows(tmp_path / name, "\r".join([*rows, ""]))
    assert [row.prompt for row in read] == ["a", "b"]


@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.txt", "p.jsonl"])
def test_a_lone_cr_among_lfs_is_an_error(tmp_path: Path, name: str) -> None:
    rows = {"p.txt": "a\rb\nc\n", "p.jsonl": '"a"\r"b"\n"c"\n'}.get(name, 'prompt\na\rb\nc\n"d"\re\n')
    errors = prompt_files.row_errors(tmp_path / name, rows)
    assert errors
    assert all("a lone CR (character " in text and "end lines with LF or CRLF" in text for _, text in errors)


def test_a_line_end_inside_a_cell_of_an_old_macs_table_is_text(tmp_path: Path) -> None:
    read = prompt_files.rows(tmp_path / "p.csv", 'prompt,seed\r"two\nlines",5\r"two\rmore",6\r')
    assert [row.prompt for row in read] == ["two\nlines", "two\rmore"]


@pytest.mark.parametrize("size", range(2**18 - 3, 2**18 + 2))
def test_a_crlf_over_two_blocks_ends_one_line(tmp_path: Path, size: int) -> None:
    first = '{"prompt": "a"}'.ljust(size)
    read = prompt_files.rows(tmp_path / "p.jsonl", f'{first}\r\n"b"\r\n')
    assert [row.prompt for row in read] == ["a", "b"]


@pytest.mark.parametrize("end", ["\v", "\f", "\x85", "\u2028", "\u2029"])
def test_other_line_ends_are_errors_in_txt_and_text_elsewhere(tmp_path: Path, end: str) -> None:
    [(reason, text)] = prompt_files.row_errors(tmp_path / "p.txt", f"a{end}b\n{end}\nc{end}\n")
    assert reason == "line ends"
    assert "(character 2) ends a line in some programs; end lines with LF or CRLF, or write a space" in text
    [row] = prompt_files.rows(tmp_path / "p.csv", f"prompt\na{end}b\n")
    assert row.prompt == f"a{end}b"

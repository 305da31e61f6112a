from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import prompt_files

from latentfarm.errors import InputError
from latentfarm.submission.prompts import LocatedRow, ReadOptions
from latentfarm.submission.prompts.lines import MAX_LINE_BYTES

pytestmark = pytest.mark.unit


def test_a_table_has_a_header_and_an_empty_cell_is_a_missing_field(tmp_path: Path) -> None:
    header = "\ufeffprompt,seed, save_intermediates ,scheduler_options\r\n"
    text = header + 'a cat,7,true,"{""solver_order"": 3}"\r\n"a, dog",,,\r\n'
    cat, dog = prompt_files.rows(tmp_path / "p.csv", text)
    assert prompt_files.given(cat) == {
        "prompt": "a cat",
        "seed": 7,
        "save_intermediates": True,
        "scheduler_options": {"solver_order": 3},
    }
    assert prompt_files.given(dog) == {"prompt": "a, dog"}


def test_tsv_separates_by_tabs(tmp_path: Path) -> None:
    [row] = prompt_files.rows(tmp_path / "p.tsv", "prompt\tseed\na cat, a dog\t7\n")
    assert prompt_files.given(row) == {"prompt": "a cat, a dog", "seed": 7}


def test_the_place_of_a_row_is_its_first_line(tmp_path: Path) -> None:
    entries = prompt_files.found(tmp_path / "p.csv", 'prompt\n"two\nlines"\n\nthree\n"caf\né",1\n')
    assert [entry.place for entry in entries if isinstance(entry, LocatedRow)] == ["p.csv line 2", "p.csv line 5"]
    assert prompt_files.row_errors(tmp_path / "p.csv", 'prompt\n"two\nlines"\n\n"a\nb",1\n') == [
        (
            "ragged row",
            "p.csv line 5: 2 cells, but the header has 1; put a cell that contains a delimiter in double quotes",
        )
    ]


def test_syntax_and_clip_skip_are_columns(tmp_path: Path) -> None:
    [row] = prompt_files.rows(tmp_path / "p.csv", "prompt,prompt_syntax,clip_skip\n(a cat:1.2),a1111,2\n")
    assert prompt_files.given(row) == {"prompt": "(a cat:1.2)", "prompt_syntax": "a1111", "clip_skip": 2}


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ("a", "ragged row", "1 cell, but the header has 3; write empty cells too"),
        (
            "a,1,,4",
            "ragged row",
            "4 cells, but the header has 3; put a cell that contains a delimiter in",
        ),
        ('"a"b,1,', "not CSV", "',' expected after '\"'; close the double quotes"),
        ('"a,1,', "not CSV", "unexpected end of data; close the double quotes"),
        (",1,", "prompt is empty", "prompt '' is empty; describe the image"),
        ("a,x,", "seed", "seed 'x' is invalid; write a valid integer"),
        ("a,1,{", "scheduler_options", "scheduler_options '{' is not JSON; write an object such as"),
        ("a,1,[]", "scheduler_options", "scheduler_options [] is invalid; write a valid dictionary"),
        ("a\0,1,", "prompt", "prompt 'a\\x00' contains a NUL character; remove it"),
    ],
)
def test_an_invalid_row_of_a_table_is_a_row_error_and_the_next_is_read(
    tmp_path: Path, row: str, reason: str, message: str
) -> None:
    entries = prompt_files.row_errors(tmp_path / "p.csv", f"prompt,seed,scheduler_options\nfine,1,\n{row}\n")
    assert [counted for counted, _ in entries] == [reason]
    assert entries[0][1].startswith(f"p.csv line 3: {message}")


def test_bytes_that_are_not_utf8_make_only_their_row_invalid(tmp_path: Path) -> None:
    content = b"prompt\ncaf\xe9\nfine\n"
    assert prompt_files.row_errors(tmp_path / "p.csv", content) == [
        (
            "not UTF-8",
            "p.csv line 2: byte 4 is 0xe9, which is not UTF-8 (in Windows-1252 it is 'é'); save the file as UTF-8",
        )
    ]
    assert len(prompt_files.found(tmp_path / "p.csv", content)) == 2


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("prompt,seed,prompt", "the header has column 'prompt' twice; rename one"),
        ("prompt,,seed", "column 2 of the header has no name; name it"),
        (
            "title,seed,kind",
            "the header has no column 'prompt', only 'title', 'seed', 'kind'; name the column of prompts with",
        ),
        ("title;seed", "only 'title;seed'; separate columns with commas or tabs, as the file's name ends, or name"),
        ("a cat in a hat", "only 'a cat in a hat'; name the column of prompts with --prompt-column, or write a header"),
        (
            "prompt,widht",
            "column 'widht' is not known; did you mean 'width'. Or use --keep-columns to copy it",
        ),
        ("prompt,columns", "column 'columns' is not known"),
        ('"prompt', "p.csv line 1: unexpected end of data"),
    ],
)
def test_an_invalid_header_is_one_error_for_the_file(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prompt_files.found(tmp_path / "p.csv", f"{header}\n")


def test_a_header_alone_has_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p\.csv has no prompts"):
        prompt_files.found(tmp_path / "p.csv", "prompt,seed\n")


def test_the_prompt_may_be_in_another_column_and_other_columns_are_kept(tmp_path: Path) -> None:
    text = "caption,prompt,seed,score\na cat,x,7,0.5\na dog,,,\n"
    options = ReadOptions(prompt_column="caption", keep_columns=True)
    cat, dog = prompt_files.rows(tmp_path / "p.csv", text, options)
    assert prompt_files.given(cat) == {"prompt": "a cat", "seed": 7, "columns": {"prompt": "x", "score": "0.5"}}
    assert prompt_files.given(dog) == {"prompt": "a dog", "columns": {"prompt": "", "score": ""}}
    with pytest.raises(InputError, match="column 'prompt' is not known"):
        prompt_files.found(tmp_path / "p.csv", text, ReadOptions(prompt_column="caption"))


def test_a_record_over_a_megabyte_is_refused_at_once(tmp_path: Path) -> None:
    lines = b'prompt\n"never closed\n' + b"a line of a hundred bytes".ljust(99) + b"\n"
    with pytest.raises(InputError, match=r"p\.csv line \d+ is longer than 1,048,576 bytes.*double quote not closed"):
        # cells of over 131,072 characters are refused by the csv module, so the record is made of many
        prompt_files.found(
            tmp_path / "p.csv", lines + b'","'.join([b"a" * 99_999 + b"\n"] * (MAX_LINE_BYTES // 99_999 + 2))
        )


PROMPTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40).filter(str.strip)


@given(
    st.lists(st.tuples(PROMPTS, st.none() | st.integers(0, 2**63 - 1)), min_size=1, max_size=5), st.sampled_from("ct")
)
def test_a_table_keeps_every_prompt_unchanged(
    tmp_path_factory: pytest.TempPathFactory, written: list[tuple[str, int | None]], kind: str
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter={"c": ",", "t": "\t"}[kind])
    writer.writerows([("prompt", "seed"), *written])
    read = prompt_files.rows(tmp_path_factory.getbasetemp() / f"same.{kind}sv", text.getvalue())
    assert [(row.prompt, row.seed) for row in read] == written

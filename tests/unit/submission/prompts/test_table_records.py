"""TSV with and without quotes: the right reading or an error, and a note where there was a choice."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import prompt_files

from latentfarm.submission.prompts import LocatedRow, ReadOptions, RowError, open_source, table_records

pytestmark = pytest.mark.unit

AS_WRITTEN = "a cell that begins with a double quote, but is no quoted cell, is kept as written"
WITHOUT = "a cell that is wholly in double quotes is read without them"
OVER_LINES = "a cell in double quotes goes over several lines"


def read(file: Path, content: str) -> tuple[list[str], dict[str, int]]:
    file.write_text(content, newline="")
    source = open_source(file, ReadOptions())
    return [
        found.row.prompt if isinstance(found, LocatedRow) else f"ERROR {found.reason}" for found in source.read()
    ], dict(source.notes)


@pytest.mark.parametrize(
    ("cell", "prompt", "notes"),
    [
        ('"Hello" cries "Bob"', '"Hello" cries "Bob"', {AS_WRITTEN: 1}),
        ('"Hello" cries Bob', '"Hello" cries Bob', {AS_WRITTEN: 1}),
        ('"never closed', '"never closed', {AS_WRITTEN: 1}),
        ('"', '"', {AS_WRITTEN: 1}),
        ('"""', '"""', {AS_WRITTEN: 1}),
        ('"a ""b" c"', '"a ""b" c"', {AS_WRITTEN: 1}),
        ('a sign that reads "stop"', 'a sign that reads "stop"', {}),
        ('a 5" pipe', 'a 5" pipe', {}),
        ('"a ""b"" c"', 'a "b" c', {}),
        ('"""Hello"" cries Bob"', '"Hello" cries Bob', {}),
        ('"a cat"', "a cat", {WITHOUT: 1}),
        ('"a\ttab"', "a\ttab", {}),
        ('"two\nlines"', "two\nlines", {}),
        ('"two\r\nlines, ""quoted"""', 'two\r\nlines, "quoted"', {}),
        ("a, b; c|d", "a, b; c|d", {}),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_cell_of_tsv_is_read_as_it_was_meant(
    tmp_path: Path, cell: str, prompt: str, notes: dict[str, int], end: str
) -> None:
    prompts, found = read(tmp_path / "p.tsv", f"prompt\tseed{end}{cell}\t5{end}next\t6{end}")
    assert prompts == [prompt, "next"]
    assert found == notes


def test_the_places_after_a_cell_kept_as_written_are_right(tmp_path: Path) -> None:
    file = tmp_path / "p.tsv"
    entries = prompt_files.found(file, 'prompt\tseed\n"open\t1\nnext\t2\n"two\nlines"\t3\nx\n"y\n"\t4\tz\n')
    places = [entry.place if isinstance(entry, LocatedRow) else entry.text.partition(": ")[0] for entry in entries]
    assert places == [f"p.tsv line {number}" for number in (2, 3, 4, 6, 7, 8)]
    assert [entry.reason for entry in entries if isinstance(entry, RowError)] == ["ragged row"] * 3


def test_a_quoted_cell_over_lines_that_might_be_records_is_an_error(tmp_path: Path) -> None:
    prompts, _ = read(tmp_path / "p.tsv", 'prompt\tseed\n"a 12\t1\nb\t2\na 12"\t3\n')
    assert prompts == ["ERROR double quotes", "b", 'a 12"']


def test_a_file_whose_tool_does_not_quote_is_read_line_by_line(tmp_path: Path) -> None:
    prompts, notes = read(tmp_path / "p.tsv", 'prompt\tseed\nreads "x"\t0\n"a 12\t1\nb\t2\na 12"\t3\n')
    assert prompts == ['reads "x"', '"a 12', "b", 'a 12"']
    assert notes == {AS_WRITTEN: 1}


def test_a_table_of_one_column_has_quoted_cells_over_lines(tmp_path: Path) -> None:
    assert read(tmp_path / "p.tsv", 'prompt\n"two\nlines"\nnext\n') == (["two\nlines", "next"], {OVER_LINES: 1})
    assert read(tmp_path / "p.tsv", 'prompt\nreads "x"\n"Hello\nnext\n')[0] == ['reads "x"', '"Hello', "next"]


@pytest.mark.parametrize("limit", [500, 2**20])
def test_a_quote_that_is_never_closed_takes_no_line_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(table_records, "MAX_LINE_BYTES", limit)
    prompts, _ = read(tmp_path / "p.tsv", 'prompt\tseed\n"open\t1\n' + "next\t2\n" * 500)
    assert prompts == ['"open', *["next"] * 500]


def test_csv_keeps_its_quotes_strict(tmp_path: Path) -> None:
    prompts, notes = read(tmp_path / "p.csv", 'prompt,seed\n"Hello" cries Bob,5\nnext,6\n')
    assert prompts == ["ERROR not CSV", "next"]
    assert notes == {}


TEXTS = st.text(st.sampled_from('ab ",;|\t\n\r') | st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
ROWS = st.lists(st.tuples(TEXTS.filter(str.strip), TEXTS), min_size=1, max_size=4)


@given(ROWS, st.sampled_from(["p.csv", "p.tsv", "p;csv"]), st.booleans())
def test_what_a_csv_writer_writes_is_read_unchanged_or_is_an_error(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    kind: str,
    quoted: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    text = io.StringIO(newline="")
    delimiter = {"p.csv": ",", "p.tsv": "\t", "p;csv": ";"}[kind]
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL).writerows(
        [("prompt", "negative_prompt"), *rows]
    )
    file = tmp_path_factory.getbasetemp() / f"any{kind[-4:].replace(';', '.')}"
    entries = prompt_files.found(file, text.getvalue())
    ambiguous = kind == "p.tsv" and any("\t" in "".join(row) and "\n" in "".join(row) for row in rows)
    for entry, written in zip(entries, rows, strict=not ambiguous):
        if isinstance(entry, LocatedRow):
            assert (entry.row.prompt, entry.row.negative_prompt or "") == written
        else:
            assert ambiguous
            return


PLAIN = st.text(st.sampled_from('ab "') | st.characters(codec="utf-8", exclude_characters="\0\t\r\n"), max_size=20)


@given(st.lists(st.tuples(PLAIN.filter(str.strip), st.sampled_from(["x", "y z"])), min_size=1, max_size=4))
def test_tsv_without_quoting_loses_only_quotes_around_a_whole_cell(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    content = "".join("\t".join(row) + "\n" for row in [("prompt", "negative_prompt"), *rows])
    entries = prompt_files.found(tmp_path_factory.getbasetemp() / "plain.tsv", content)
    for entry, (prompt, _) in zip(entries, rows, strict=True):
        if isinstance(entry, LocatedRow):
            assert entry.row.prompt in {prompt, prompt[1:-1].replace('""', '"')}
        else:
            assert prompt.startswith('"')

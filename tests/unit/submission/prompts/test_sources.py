from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import prompt_files

from latentfarm.errors import InputError
from latentfarm.submission.prompts import LocatedRow, ReadOptions, RowError, Source, formats, open_source, sources

pytestmark = pytest.mark.unit

TXT = ReadOptions(format="txt")


def prompts(source: Source) -> list[str]:
    return [found.row.prompt for found in source.read() if isinstance(found, LocatedRow)]


@pytest.fixture
def stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    with ExitStack() as cleanup:

        def give(content: bytes) -> None:
            (tmp_path / "stdin").write_bytes(content)
            monkeypatch.setattr(sys, "stdin", cleanup.enter_context((tmp_path / "stdin").open()))

        yield give


def test_the_digest_of_a_file_is_that_of_its_stored_bytes(tmp_path: Path) -> None:
    file = tmp_path / "p.txt.gz"
    file.write_bytes(gzip.compress(b"a cat\n"))
    source = open_source(file)
    assert source.name == "p.txt.gz"
    assert source.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert prompts(source) == prompts(source) == ["a cat"]


def test_a_path_may_be_a_string_and_its_suffix_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "P.JSONL").write_text('{"prompt": "a cat"}')
    assert prompts(open_source(str(tmp_path / "P.JSONL"))) == ["a cat"]


def test_ndjson_is_another_ending_of_jsonl(tmp_path: Path) -> None:
    (tmp_path / "p.ndjson.gz").write_bytes(gzip.compress(b'{"prompt": "a cat"}'))
    assert prompts(open_source(tmp_path / "p.ndjson.gz")) == ["a cat"]


def test_the_format_option_overrides_the_name(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('{"prompt": "a cat"}')
    assert prompts(open_source(tmp_path / "p.txt", ReadOptions(format="jsonl"))) == ["a cat"]
    with pytest.raises(InputError, match="format 'xml' is not known; write one of txt, jsonl"):
        open_source(tmp_path / "p.txt", ReadOptions(format="xml"))


def test_a_short_stream_can_be_read_again(stdin: Callable[[bytes], None]) -> None:
    stdin(b"a cat\na dog\n")
    source = open_source("-", TXT)
    assert source.name == "stdin"
    assert source.digest == hashlib.sha256(b"a cat\na dog\n").hexdigest()
    assert prompts(source) == prompts(source) == ["a cat", "a dog"]


def test_a_long_stream_has_no_digest_and_is_read_once(
    stdin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "AHEAD_BYTES", 1000)
    expected = [f"cat {number}" for number in range(500_000)]
    stdin("\n".join(expected).encode())
    source = open_source("-", TXT)
    assert source.digest is None
    assert prompts(source) == expected
    with pytest.raises(InputError, match="stdin can be read only once; save it to a file"):
        list(source.read())


def test_stdin_needs_a_format(stdin: Callable[[bytes], None]) -> None:
    stdin(b"a cat")
    with pytest.raises(InputError, match="stdin: the name has no ending; use --format"):
        open_source("-")
    assert prompts(open_source("-", ReadOptions(format="txt"))) == ["a cat"]


def test_stdin_may_be_gzip_or_parquet(stdin: Callable[[bytes], None]) -> None:
    stdin(gzip.compress(b"a cat"))
    assert prompts(open_source("-", ReadOptions(format="txt.gz"))) == ["a cat"]
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    body = io.BytesIO()
    parquet.write_table(pa.table({"prompt": ["a cat"]}), body)
    stdin(body.getvalue())
    assert prompts(open_source("-", ReadOptions(format="parquet"))) == ["a cat"]


def test_parquet_too_long_to_stream_is_refused(stdin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_MAX_SPOOLED_BYTES", 2**20)
    stdin(b"PAR1" + bytes(2**20))
    with pytest.raises(InputError, match="stdin: parquet over 1,048,576 bytes cannot be streamed; save it to a file"):
        list(open_source("-", ReadOptions(format="parquet")).read())


def test_a_stream_that_is_not_parquet_is_refused_at_its_first_bytes(stdin: Callable[[bytes], None]) -> None:
    stdin(b"a cat")
    with pytest.raises(InputError, match="stdin is not a parquet file"):
        list(open_source("-", ReadOptions(format="parquet")).read())


def test_parquet_may_be_gzipped(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    body = io.BytesIO()
    parquet.write_table(pa.table({"prompt": ["a cat", "a dog"]}), body)
    file = tmp_path / "p.parquet.gz"
    file.write_bytes(gzip.compress(body.getvalue()))
    source = open_source(file)
    assert prompts(source) == prompts(source) == ["a cat", "a dog"]


def test_a_fifo_is_a_stream(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.txt"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_text, args=("a cat\n",))
    writer.start()
    source = open_source(fifo)
    assert prompts(source) == prompts(source) == ["a cat"]
    assert source.digest
    writer.join()


def test_an_endless_device_is_refused_at_its_first_line() -> None:
    with pytest.raises(InputError, match="zero line 1 is longer than 1,048,576 bytes"):
        list(open_source("/dev/zero", TXT).read())


def test_a_directory_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match=r"folder\.txt cannot be read: it is a directory; name a file in it"):
        open_source(tmp_path / "folder.txt")
    with pytest.raises(InputError, match=r"none\.txt cannot be read: No such file or directory"):
        open_source(tmp_path / "none.txt")
    with pytest.raises(InputError, match="cannot be read"):
        open_source("a\0b.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat")
    (tmp_path / "p.txt").chmod(0)
    with pytest.raises(InputError, match=r"p\.txt cannot be read: Permission denied"):
        list(open_source(tmp_path / "p.txt").read())


@pytest.mark.parametrize("url", ["s3://", "s3://bucket", "s3://bucket/", "s3://bucket/folder/", "s3:///key.txt"])
def test_an_s3_url_names_bucket_and_key(url: str) -> None:
    with pytest.raises(InputError, match=r"write s3://BUCKET/KEY, such as s3://bucket/prompts\.jsonl"):
        open_source(url)


def test_an_s3_object_needs_a_store() -> None:
    with pytest.raises(InputError, match=r"s3://bucket/p\.txt: no store is configured"):
        open_source("s3://bucket/p.txt")


def test_a_list_can_be_read_again_and_an_iterator_cannot() -> None:
    rows: list[Any] = ["a cat", {"prompt": "a dog", "seed": 7}]
    source = open_source(rows)
    assert prompts(source) == prompts(source) == ["a cat", "a dog"]
    assert source.digest == open_source(tuple(rows)).digest != open_source(rows[:1]).digest
    once = open_source(iter(rows))
    assert once.digest is None
    assert prompts(once) == ["a cat", "a dog"]
    with pytest.raises(InputError, match="rows can be read only once; pass a list"):
        list(once.read())


def test_rows_are_taken_from_an_iterator_one_at_a_time() -> None:
    taken: list[int] = []

    def rows() -> Iterator[str]:
        for number in range(10):
            taken.append(number)
            yield f"cat {number}"

    reading = open_source(rows()).read()
    next(reading)
    assert taken == [0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (5, "row 1: 5 is neither a text nor a dictionary"),
        ("", "row 1: prompt '' is empty; describe the image"),
        ({}, 'row 1: prompt is missing; write "prompt": "..."'),
        ({"prompt": "a", 5: 1}, "row 1: field '5' (1) is not known; write one of"),
        ({"prompt": "a", "columns": {}}, "row 1: field 'columns' ({}) is not known"),
        ({"prompt": "a", "seed": object()}, "row 1: seed "),
        ({"prompt": "a\ud800"}, "row 1: prompt 'a\\ud800' contains a lone surrogate"),
    ],
)
def test_an_invalid_row_in_python_is_a_row_error(row: Any, message: str) -> None:
    [problem] = open_source([row]).read()
    assert isinstance(problem, RowError)
    assert problem.text.startswith(message)


def test_a_dictionary_is_not_a_list_of_rows() -> None:
    with pytest.raises(InputError, match="a dictionary is not a list of rows"):
        open_source({"prompt": "a cat"})
    with pytest.raises(InputError, match="rows has no prompts"):
        list(open_source([]).read())


def test_columns_of_rows_in_python_are_kept_as_json() -> None:
    row: dict[str, Any] = {"prompt": "a", "path": Path("x/y"), "tags": ("a", "b")}
    [found] = open_source([row], prompt_files.KEEP).read()
    assert isinstance(found, LocatedRow)
    assert found.row.columns == {"path": "x/y", "tags": ["a", "b"]}
    circle: list[Any] = []
    circle.append(circle)
    [problem] = open_source([{"prompt": "a", "circle": circle}], prompt_files.KEEP).read()
    assert problem == RowError("row 1: a value is nested too deeply; write it flatter", "nested too deeply")


def test_json_lines_keep_columns_and_take_the_prompt_from_another(tmp_path: Path) -> None:
    line = json.dumps({"caption": "a cat", "prompt": "x", "seed": 7, "score": 0.5, "none": None})
    options = ReadOptions(prompt_column="caption", keep_columns=True)
    [row] = prompt_files.rows(tmp_path / "p.jsonl", line, options)
    assert prompt_files.given(row)["columns"] == {"prompt": "x", "score": 0.5, "none": None}
    assert (row.prompt, row.seed) == ("a cat", 7)
    assert prompt_files.row_errors(tmp_path / "p.jsonl", line, ReadOptions(prompt_column="caption"))[0][0] == (
        "unknown field 'prompt'"
    )
    assert prompt_files.row_errors(tmp_path / "p.jsonl", '{"prompt": "x"}', options)[0][1].startswith(
        'p.jsonl line 1: caption is missing; write "caption": "..."'
    )


def test_text_has_no_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--prompt-column 'caption': text has no columns; remove the option"):
        prompt_files.found(tmp_path / "p.txt", "a", ReadOptions(prompt_column="caption"))


ROWS = st.fixed_dictionaries(
    {"prompt": st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "guidance_scale": st.floats(0, 100),
        "save_intermediates": st.booleans(),
    },
)


@given(st.lists(ROWS, min_size=1, max_size=5), st.booleans())
def test_both_ways_of_reading_a_json_line_give_the_same_row(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[dict[str, Any]],
    escaped: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    text = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in written)
    file = tmp_path_factory.getbasetemp() / "same.jsonl"
    assert [prompt_files.given(row) for row in prompt_files.rows(file, text)] == written
    assert prompt_files.rows(file, text) == prompt_files.rows(file, text, prompt_files.KEEP)

"""Hostile and damaged files are refused by name, at once, and in little memory."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
from tests.support import prompt_files

from latentfarm.errors import InputError
from latentfarm.submission.prompts import RowError, lines, open_source, table_records
from latentfarm.submission.prompts.lines import MAX_LINE_BYTES

pytestmark = pytest.mark.unit

MIB = 2**20


@contextmanager
def little_memory_and_time() -> Iterator[None]:
    tracemalloc.start()
    begun = time.process_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
        # seconds, but tracemalloc makes them many
        assert time.process_time() - begun < 60
    finally:
        tracemalloc.stop()


def packed(unit: bytes, size_bytes: int) -> bytes:
    # members of a gzip file follow each other, so one is compressed for all
    return gzip.compress(unit * (MIB // len(unit)), mtime=0) * (size_bytes // MIB)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "tsv"])
def test_a_line_of_a_gigabyte_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"line.{suffix}"
    with file.open("wb") as stream:
        stream.write(b"prompt\n")
        stream.truncate(2**30)
    with (
        little_memory_and_time(),
        pytest.raises(InputError, match=rf"line\.{suffix} line 2 is longer than 1,048,576 bytes"),
    ):
        list(open_source(file).read())


@pytest.mark.parametrize(
    ("unit", "suffix", "message"),
    [
        (b"\0", "txt.gz", "line 1 is longer than 1,048,576 bytes"),
        (b"\n", "txt.gz", "bytes before it have no row; remove blank lines and comments"),
        (b"\n", "jsonl.gz", "bytes before it have no row"),
        (b"                \n", "jsonl.gz", "bytes before it have no row"),
        (b"# a comment that is not short\n", "txt.gz", "2,097,152 bytes before it have no row"),
        (b"\r\n", "csv.gz", "bytes before it have no row"),
        (b'"', "csv.gz", "line 1 is longer than 1,048,576 bytes"),
    ],
)
def test_a_gzip_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: bytes, suffix: str, message: str
) -> None:
    if suffix != "txt.gz":
        # a million short lines take seconds; those of txt.gz reach the real limit. With every line of this limit kept,
        # a table would still take over 8 MiB.
        for module in (lines, table_records):
            monkeypatch.setattr(module, "MAX_SKIPPED_BYTES", 2**19)
    file = tmp_path / f"bomb.{suffix}"
    file.write_bytes(packed(unit, 2**26))
    assert file.stat().st_size < MIB
    with little_memory_and_time(), pytest.raises(InputError, match=message):
        list(open_source(file).read())


def test_a_prompt_repeated_many_times_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "same.txt.gz").write_bytes(gzip.compress(b"a cat\n" * 200_000))
    assert sum(not isinstance(found, RowError) for found in open_source(tmp_path / "same.txt.gz").read()) == 200_000


def test_the_longest_line_is_a_row_or_a_row_error(tmp_path: Path) -> None:
    assert prompt_files.row_errors(tmp_path / "p.txt", "a" * MAX_LINE_BYTES) == [
        ("prompt", f"p.txt line 1: prompt '{'a' * 56}... is 1,048,576 bytes long; shorten it to 4,096")
    ]
    assert (
        len(prompt_files.found(tmp_path / "p.txt", "a cat\n" * (MAX_LINE_BYTES // 6) + "a" * 4096))
        == MAX_LINE_BYTES // 6 + 1
    )
    with pytest.raises(InputError, match=r"p\.txt line 3 is longer"):
        prompt_files.found(tmp_path / "p.txt", "a\nb\n" + "a" * (MAX_LINE_BYTES + 1) + "\nc")


def compressed(content: bytes) -> bytes:
    """Return the same bytes in every process, because they are part of a test's name."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "a cat".encode("utf-16"), "p.txt is UTF-16; save it as UTF-8"),
        ("p.csv", "prompt\n".encode("utf-16-le"), "p.csv looks like UTF-16; save it as UTF-8"),
        ("p.jsonl", b"\xff\xfe\0\0" + "a".encode("utf-32-le"), "p.jsonl is UTF-32; save it as UTF-8"),
        ("p.txt", compressed(b"a cat"), "p.txt is compressed with gzip; end its name in .gz"),
        (
            "p.csv",
            b"PK\x03\x04rest",
            "p.csv is a zip archive, or a workbook such as .xlsx; unpack it, or save it as CSV",
        ),
        ("p.txt", b"\n<!DOCTYPE html>\n<html>", "p.txt is an HTML page; download the file itself"),
        (
            "p.json",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "p.json is a pointer of Git LFS, not the file; run git lfs pull",
        ),
        ("p.txt", b"PAR1", "p.txt is a parquet file; end its name in .parquet"),
        ("p.txt.gz", b"a cat", "p.txt.gz is not a gzip file or is damaged .*; compress it again"),
        (
            "p.txt.gz",
            compressed(b"a cat\n" * 99)[:-9],
            "p.txt.gz is truncated or damaged .*; compress or copy it again",
        ),
        ("p.txt.gz", compressed(b"a cat\n")[:-8] + bytes(8), "p.txt.gz is not a gzip file or is damaged .*CRC"),
        ("p.txt.gz", compressed(b"a cat\n")[:10] + b"\xff" * 9, "p.txt.gz is truncated or damaged"),
        ("p.txt", b"", "p.txt has no prompts; write one per line"),
        ("p.jsonl", b"\n \n", "p.jsonl has no prompts"),
        ("p.csv", b"", "p.csv has no prompts"),
        ("p.txt.gz", b"", "p.txt.gz has no prompts"),
        ("p.docx", b"a", r"p.docx: a prompt file ends in .txt, .jsonl, .json, .csv, .tsv, .parquet \(each also"),
        ("prompts", b"a", r"prompts: the name has no ending; use --format \(txt, jsonl"),
        ("p.parquet.gz", compressed(b"a"), "p.parquet.gz is not a parquet file"),
    ],
)
def test_a_file_of_another_format_is_one_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prompt_files.found(tmp_path / name, content)


def test_rows_before_the_damage_are_read(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"cat {number * 7919 % 100_003}"}) for number in range(50_000)]
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode())[:-1000])
    reading = open_source(tmp_path / "cut.jsonl.gz").read()
    assert not any(isinstance(found, RowError) for found in islice(reading, 20_000))
    with pytest.raises(InputError, match="truncated or damaged"):
        list(reading)


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        (b'{"prompt": "a\\u0000b"}', "prompt", "p.jsonl line 1: prompt 'a\\x00b' contains a NUL character; remove it"),
        (b'{"prompt": "\\ud800"}', "not JSON", "p.jsonl line 1 column "),
        (b'{"prompt": "caf\xe9"}', "not UTF-8", "p.jsonl line 1: byte 16 is 0xe9, which is not UTF-8"),
        (b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}", "not JSON", "p.jsonl line 1 column "),
        (b'{"prompt": "a", "guidance_scale": NaN}', "not JSON", "p.jsonl line 1 column "),
        (b'{"prompt": "a", "columns": {"a": 1}}', "unknown field 'columns'", "p.jsonl line 1: field 'columns'"),
        (b'{"prompt": "a", "' + b"k" * 9999 + b'": 1}', "unknown field 'kkkkk", "p.jsonl line 1: field 'kkkkk"),
        (b'{"seed": 1}', "prompt is missing", 'p.jsonl line 1: prompt is missing; write "prompt": "..."'),
        (b"null", "not an object", "p.jsonl line 1: null is not an object; write one such as"),
    ],
)
def test_an_invalid_line_has_a_short_reason(tmp_path: Path, line: bytes, reason: str, message: str) -> None:
    [(counted, text)] = prompt_files.row_errors(tmp_path / "p.jsonl", line)
    assert counted.startswith(reason)
    assert len(counted) < 100
    assert text.startswith(message)
    assert len(text) < 1000


def test_a_row_with_a_thousand_errors_lists_the_first_ones(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "a", **{f"key {number}": 1 for number in range(1000)}})
    [(_, text)] = prompt_files.row_errors(tmp_path / "p.jsonl", line)
    assert text.split("\n")[-1] == "... and 992 more in this row"
    assert len(text.split("\n")) == 9


def test_columns_nested_too_deeply_are_a_row_error(tmp_path: Path) -> None:
    for depth in (150, 900, 100_000):
        line = '{"prompt": "a", "tree": ' + "[" * depth + "]" * depth + "}"
        entries = prompt_files.found(tmp_path / "p.jsonl", line, prompt_files.KEEP)
        assert [isinstance(entry, RowError) for entry in entries] == [depth > 200]


def test_the_second_row_with_an_id_is_invalid(tmp_path: Path) -> None:
    lines = [{"prompt": "a", "id": "x"}, {"prompt": "b"}, {"prompt": "c", "id": "x"}, {"prompt": "d", "id": "y"}]
    assert prompt_files.row_errors(tmp_path / "p.jsonl", "\n".join(map(json.dumps, lines))) == [
        ("id is not unique", "p.jsonl line 3: id 'x' is not unique; an earlier row has it")
    ]

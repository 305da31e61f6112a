"""JSON documents: layouts, notes, refusals."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import prompt_files

from latentfarm.errors import InputError
from latentfarm.submission.prompts import LocatedRow, ReadOptions, json_document, json_file, open_source

pytestmark = pytest.mark.unit


def read(file: Path, content: str | bytes, options: ReadOptions | None = None) -> tuple[list[Any], dict[str, int]]:
    """Return the place and fields of each row, and the notes."""
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = open_source(file, options or ReadOptions())
    rows = [
        (found.place, prompt_files.given(found.row)) if isinstance(found, LocatedRow) else found.text
        for found in source.read()
    ]
    return rows, dict(source.notes)


def test_a_list_has_texts_and_objects(tmp_path: Path) -> None:
    rows, notes = read(tmp_path / "p.json", '["a cat", {"prompt": "a dog", "steps": 3}]')
    assert rows == [
        ("p.json entry 1", {"prompt": "a cat"}),
        ("p.json entry 2", {"prompt": "a dog", "num_inference_steps": 3}),
    ]
    assert notes == {"'steps' is read as num_inference_steps": 1}


@pytest.mark.parametrize("content", ['{"prompt": "a cat", "seed": 4}', '{"text": "a cat", "seed": 4}'])
def test_an_object_with_a_prompt_is_one_row(tmp_path: Path, content: str) -> None:
    rows, _ = read(tmp_path / "p.json", content)
    assert rows == [("p.json entry 1", {"prompt": "a cat", "seed": 4})]


def test_a_text_alone_is_a_prompt_and_so_is_one_on_a_line_of_jsonl(tmp_path: Path) -> None:
    assert read(tmp_path / "p.json", ' "a cat"\n')[0] == [("p.json entry 1", {"prompt": "a cat"})]
    assert read(tmp_path / "p.jsonl", '"a cat"\n')[0] == [("p.jsonl line 1", {"prompt": "a cat"})]


@pytest.mark.parametrize("dog", ['"a dog"', '{"prompt": "a dog"}'])
def test_the_keys_of_an_object_of_prompts_are_their_ids(tmp_path: Path, dog: str) -> None:
    rows, notes = read(tmp_path / "p.json", f'{{"first": {dog}, "": {dog}}}'.replace('""', '"second"'))
    assert rows[0] == ("p.json entry 1 ('first')", {"prompt": "a dog", "id": "first"})
    assert rows[1] == ("p.json entry 2 ('second')", {"prompt": "a dog", "id": "second"})
    assert notes == {"the keys of the object are read as id": 2}


def test_an_id_of_the_object_itself_takes_precedence(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "p.json", '{"x": {"prompt": "a", "id": "own"}, "y": {"prompt": "b", "custom_id": "z"}}')
    assert [fields["id"] for _, fields in rows] == ["own", "z"]


def test_a_part_of_diffusiondb_is_read(tmp_path: Path) -> None:
    rows, notes = read(
        tmp_path / "part-000001.json", '{"a.png": {"p": "a cat", "se": 5, "c": 7.0, "st": 50, "sa": "ddim"}}'
    )
    [(place, fields)] = rows
    assert place == "part-000001.json entry 1 ('a.png')"
    assert fields == {
        "id": "a.png",
        "prompt": "a cat",
        "seed": 5,
        "guidance_scale": 7.0,
        "num_inference_steps": 50,
        "scheduler": "ddim",
    }
    assert notes["'se' is read as seed"] == 1


@pytest.mark.parametrize("entry", ['{"text": "a cat", "p": "0.5"}', '{"prompt": "a cat", "p": "0.5"}'])
def test_p_is_a_prompt_only_if_there_is_no_other(tmp_path: Path, entry: str) -> None:
    rows, _ = read(tmp_path / "p.jsonl", entry, prompt_files.KEEP)
    assert rows == [("p.jsonl line 1", {"prompt": "a cat", "columns": {"p": "0.5"}})]


@pytest.mark.parametrize("key", ["prompts", "data", "Items", "rows"])
def test_the_only_list_of_an_object_has_the_rows(tmp_path: Path, key: str) -> None:
    rows, notes = read(tmp_path / "p.json", json.dumps({"version": 2, key: ["a cat", {"prompt": "a dog"}]}))
    assert [fields for _, fields in rows] == [{"prompt": "a cat"}, {"prompt": "a dog"}]
    assert notes == {
        f"the rows are the list '{key}' of the object": 1,
        "'version' beside the list is passed over": 1,
    }


@pytest.mark.parametrize("content", ['{"prompt": "a cat"}\n{"prompt": "a dog"}\n', '"a cat"\r\n"a dog"'])
def test_json_lines_in_a_file_named_json_are_read(tmp_path: Path, content: str) -> None:
    rows, notes = read(tmp_path / "p.json", content)
    assert rows == [("p.json line 1", {"prompt": "a cat"}), ("p.json line 2", {"prompt": "a dog"})]
    assert notes == {"the file has JSON lines: a row on each line": 1}


def test_objects_over_several_lines_may_follow_each_other(tmp_path: Path) -> None:
    rows, notes = read(tmp_path / "p.json", '{\n"prompt": "a cat"\n}\n{\n"prompt": 5\n}\n"a dog"\n')
    assert rows == [
        ("p.json entry 1", {"prompt": "a cat"}),
        "p.json entry 2: prompt 5 is invalid; write a valid string",
        ("p.json entry 3", {"prompt": "a dog"}),
    ]
    assert notes == {"the file has several JSON documents: a row each": 1}
    with pytest.raises(InputError, match=r"p\.json line 5 column 1: a value was expected, not '}'"):
        read(tmp_path / "p.json", '{\n"prompt": "a"}\n{\n"prompt": "b"}\n}')


def test_a_document_may_have_a_byte_order_mark_and_be_compressed(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "p.json.gz", gzip.compress("\ufeff[\"c'est l'été\"]".encode()))
    assert rows == [("p.json.gz entry 1", {"prompt": "c'est l'été"})]


WORKFLOW = "p.json is a workflow of ComfyUI, not a list of prompts; write a list such as"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"3": {"class_type": "KSampler", "inputs": {"seed": 5}}}', WORKFLOW),
        ('{"prompt": {"3": {"class_type": "KSampler", "inputs": {}}}, "client_id": "x"}', WORKFLOW),
        ('{"last_node_id": 9, "nodes": [{"id": 1}], "links": []}', WORKFLOW),
        (
            '{"prompt": {"0": "a"}, "seed": {"0": 1}}',
            r"p.json is a table by columns \('prompt', 'seed'\); write a list",
        ),
        ('{"prompt": ["a"], "seed": [1]}', "p.json is a table by columns"),
        ('{"prompts": ["a"], "seed": 5}', "'seed' beside the list 'prompts' is not read; write it into each entry"),
        ('{"images": [], "annotations": []}', "with the keys 'images', 'annotations' is not a row and has no list"),
        ('{"colours": ["red", "blue"]}', "an object with the keys 'colours' is not a row"),
        ('{"theme": "dark", "n": 4}', "with the keys 'theme', 'n' is not a row"),
        ('{"name": "x", "scripts": {"a": "b"}}', "with the keys 'name', 'scripts' is not a row"),
        ('{"a": "x", "w": "y"}', "with the keys 'a', 'w' is not a row"),
        ("5", "p.json line 1 column 1: this is not a list or an object"),
        ("a cat", "p.json line 1 column 1: this is not a list or an object"),
        ("[]", "p.json has no prompts"),
        ("{}", "p.json has no prompts"),
        (" ", "p.json has no prompts"),
        ('["a",\n "b",]', "p.json line 2 column 6: the last entry ends with a comma; remove the comma"),
        ('["été" "b"]', r"p.json line 1 column 8: ',' or '\]' was expected, not '\"'; write valid JSON"),
        ('["a"', r"p.json line 1 column 5: ',' or '\]' was expected, not the end of the file"),
        ('["a', "p.json line 1 column 2: the text has no closing double quote; close it"),
        ('[{"prompt": "a}]', "p.json line 1 column 13: the text has no closing double quote"),
        ('[{"prompt": "a"]', r"p.json line 1 column 16: another bracket is open than '\]' closes; close it first"),
        ('[{"prompt": "a"', "p.json line 1 column 2: '{' is not closed; close it, or copy the file again"),
        ('[{"prompt": "a"}] x', "p.json line 1 column 19: there is text after the document's end"),
        ('["a"]\n["b"]', "p.json line 2 column 1: there is text after the document's end"),
        ("{a: 1}", "p.json line 1 column 2: a key in double quotes was expected, not 'a'"),
        ("{'a': 1}", 'p.json line 1 column 2: a key in double quotes was expected, not "\'"'),
        ('{"a" "x"}', "p.json line 1 column 6: ':' was expected after the key"),
        ('{"a": "x",\n"a": "y"}', r"line 2 column 1: key 'a' is there twice \(entries 1 and 2\); rename one"),
        ("[" * 100_000, "p.json line 1 column 102: there are more than 100 levels; write it flatter"),
        ('["a"]'.encode("utf-16"), "p.json is UTF-16; save it as UTF-8, such as with iconv -f UTF-16 -t UTF-8"),
        (b"PAR1", "p.json is a parquet file"),
    ],
)
def test_another_document_is_one_error_with_its_place_and_cure(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path / "p.json", content)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("5", "p.json entry 2: 5 is not an object; write one such as"),
        ("null", "p.json entry 2: null is not an object"),
        ('["x"]', 'p.json entry 2: ["x"] is not an object'),
        ('{"prompt": "a", "seed": NaN}', 'p.json entry 2 (line 2 column 25): \'{"prompt": "a", "seed": NaN}\' is not'),
        ('{"prompt": "a", "prompt": "b"}', "p.json entry 2: 'prompt' is there twice; write it once"),
        ('{"prompt": "\\ud800"}', "p.json entry 2 (line 2 column "),
        ('{"prompt": "a", "seed": [1,]}', "p.json entry 2 (line 2 column "),
        ('{"widht": 5}', 'p.json entry 2: prompt is missing; write "prompt": "..."'),
        ("{" + f'"prompt": "a", "tree": {"[" * 98}{"]" * 98}' + "}", "p.json entry 2: field 'tree'"),
    ],
)
def test_an_invalid_entry_leaves_the_others_readable(tmp_path: Path, entry: str, message: str) -> None:
    rows, _ = read(tmp_path / "p.json", f'["a",\n{entry},\n"c"]')
    assert rows[0] == ("p.json entry 1", {"prompt": "a"})
    assert rows[1].startswith(message)
    assert rows[2] == ("p.json entry 3", {"prompt": "c"})


def test_bytes_that_are_not_utf8_make_only_their_entry_invalid(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "p.json", b'["caf\xe9", "fine"]')
    assert rows[0].startswith("p.json entry 1: byte 5 is 0xe9, which is not UTF-8 (in Windows-1252 it is 'é'); save")
    assert rows[1] == ("p.json entry 2", {"prompt": "fine"})


def test_a_large_document_and_a_large_entry_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="line 1 column 7: the entry is longer than 1,048,576 bytes"):
        read(tmp_path / "p.json", '["a", ' + "[" + "[]," * 400_000 + "[]]]")
    monkeypatch.setattr(json_file, "MAX_DOCUMENT_BYTES", 2**20)
    with pytest.raises(
        InputError, match=r"p\.json\.gz is longer than 1,048,576 bytes; write JSON lines.*--format json"
    ):
        read(tmp_path / "p.json.gz", gzip.compress(b"[" * 2**21, 1))


@pytest.mark.parametrize(
    ("content", "cure"),
    [
        ('[{"prompt": "a"}, {"prompt": "b"}]', "read the file with --format json"),
        ('{\n  "prompt": "a"\n}', "read the file with --format json"),
        ('{"prompt": "a"},\n{"prompt": "b"}', "remove the comma at its end"),
        ('[\n  "a"\n]', "read the file with --format json"),
        ('{"prompt": "a"}\r{"prompt": "b"}\n', "a lone CR \\(character 16\\) ends a line in some programs; end lines"),
    ],
)
def test_a_document_named_jsonl_is_refused_with_the_cure(tmp_path: Path, content: str, cure: str) -> None:
    [(_, text), *_] = prompt_files.row_errors(tmp_path / "p.jsonl", content)
    assert cure.replace("\\", "") in text


PROMPTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40).filter(str.strip)


@given(
    st.lists(st.tuples(PROMPTS, st.none() | st.integers(0, 2**63 - 1)), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([None, 2]),
)
def test_a_document_keeps_every_prompt_unchanged(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[tuple[str, int | None]],
    by_id: bool,  # noqa: FBT001 - hypothesis gives it
    indent: int | None,
) -> None:
    rows = [{"prompt": prompt, "seed": seed} for prompt, seed in written]
    document = {f"row {number}": row for number, row in enumerate(rows)} if by_id else rows
    text = json.dumps(document, indent=indent, ensure_ascii=by_id)
    read_rows = prompt_files.rows(tmp_path_factory.getbasetemp() / "same.json", text)
    assert [(row.prompt, row.seed) for row in read_rows] == written


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=5), st.sampled_from([None, 0, 3]))
def test_the_entries_of_any_list_are_found(values: list[Any], indent: int | None) -> None:
    document = json_document.JsonDocument(json.dumps(values, indent=indent, ensure_ascii=False).encode(), "p.json")
    assert [json.loads(document.content[entry.start : entry.end]) for entry in document.entries(0)] == values

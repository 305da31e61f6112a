from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.fetching import result

from latentfarm.edit_fields import EDIT_FIELDS
from latentfarm.fetch.serialize import IMAGE_COLUMNS, TABLE_COLUMNS, flatten_result, metadata_entry, table_row
from latentfarm.fetch.tables import write_csv, write_jsonl, write_parquet
from latentfarm.job import Job
from latentfarm.limits import MAX_SEED

pytestmark = pytest.mark.unit


def test_every_field_of_a_job_has_a_column_in_tables() -> None:
    # a job's name has its batch, its strip is stored as `intermediates`, its previews last as long as it is watched, a
    # draft has its state, and of its scorers the scores are stored
    besides = {"batch", "save_intermediates", "partial_images", "draft", "scorers"}
    # those of input images, adapters and second stages are the column `edits`
    fields = Job.model_fields.keys() - set(EDIT_FIELDS)
    assert fields - TABLE_COLUMNS.keys() == besides
    assert IMAGE_COLUMNS.keys() >= (fields - besides) | {"edits", "safety", "scores"}


def test_input_images_adapters_scores_and_the_safety_check_are_in_every_format() -> None:
    edits = {"image": f"sha256:{'0' * 64}", "strength": 0.5, "loras": [{"name": "outlined", "scale": 0.8}]}
    job = Job(batch="cats", index=1, prompt="a", seed=1, **edits)
    safety = {"flagged": True, "concepts": {"3": 0.02}}
    scores = {"sharpness": 0.25, "clip": None, "phash": "0123456789abcdef"}
    request, adapters = json.loads(json.dumps(job.request())), [{"name": "outlined", "sha256": "ab"}]
    found = result(1, request=request, safety=safety, scores=scores, adapters=adapters)
    line = flatten_result(found)
    assert {name: line[name] for name in edits} == edits
    assert (line["safety"], line["adapters"]) == (safety, found["adapters"])
    for entry in (table_row(found), metadata_entry(found, "a.png")):
        assert json.loads(entry["edits"]) == edits
        assert json.loads(entry["safety"]) == safety
        assert json.loads(entry["scores"]) == scores
    bare = metadata_entry(result(), "a.png")
    assert (bare["edits"], bare["safety"], bare["scores"], table_row(result())["edits"]) == ("{}", "{}", "{}", None)


def test_every_format_has_the_same_values_of_rare_fields() -> None:
    job = Job(batch="cats", index=1, prompt="a", seed=1, prompt_syntax="a1111", clip_skip=1, image_format="webp")
    found = [result(), result(1, request=job.request())]
    names = ("image_format", "prompt_syntax", "clip_skip")
    expected = [("png", "plain", 0), ("webp", "a1111", 1)]
    assert [tuple(flatten_result(each)[name] for name in names) for each in found] == expected
    assert [tuple(table_row(each)[name] for name in names) for each in found] == expected
    assert [tuple(metadata_entry(each, "a.png")[name] for name in names) for each in found] == expected


def test_an_invalid_row_without_a_request_has_a_line_in_every_format() -> None:
    error = {"code": "invalid_row", "message": "width 65"}
    invalid = {"job": "cats/0", "index": 0, "state": "failed", "error": error, "request": {}}
    assert flatten_result(invalid)["error"] == error
    cells = table_row(invalid)
    assert (cells["error_code"], cells["error_message"], cells["prompt"]) == ("invalid_row", "width 65", None)


def test_metadata_has_the_same_keys_and_types_for_every_job() -> None:
    full = metadata_entry(result(id="x", columns={"a": 1}), "17.png")
    bare = metadata_entry({**result(), "request": {"prompt": "a", "guidance_scale": 4, "seed": MAX_SEED}}, "17.png")
    assert {name: type(value) for name, value in full.items()} == {name: type(value) for name, value in bare.items()}
    assert (bare["guidance_scale"], bare["id"], full["columns"], bare["columns"]) == (4.0, "", '{"a": 1}', "{}")


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=4))
@example([("a\rb", "=1+1")])
def test_csv_preserves_every_prompt_and_column(texts: list[tuple[str, str]]) -> None:
    opened = io.BytesIO()
    request = result()["request"]
    found = [result(n, columns={"note": b}, request={**request, "prompt": a}) for n, (a, b) in enumerate(texts)]
    write_csv(opened, found)
    rows = list(csv.DictReader(io.StringIO(opened.getvalue().decode(), newline="")))
    assert [(row["prompt"], json.loads(row["columns"])["note"]) for row in rows] == texts


def test_parquet_tables_have_one_schema_for_any_rows(tmp_path: Path) -> None:
    from pyarrow import parquet

    invalid = {"job": "cats/1", "index": 1, "state": "failed", "error": {"code": "invalid_row", "message": "m"}}
    for name, lines in {"a": [], "b": [invalid], "c": [result(columns={"x": [1]}), invalid]}.items():
        with (tmp_path / name).open("wb") as opened:
            write_parquet(opened, lines)
    tables = [parquet.read_table(tmp_path / name) for name in "abc"]
    assert tables[0].schema == tables[1].schema == tables[2].schema
    assert tables[2].column_names == list(TABLE_COLUMNS)
    first, second = tables[2].to_pylist()
    assert (first["seed"], first["columns"], second["error_code"], second["prompt"]) == (
        9,
        '{"x": [1]}',
        "invalid_row",
        None,
    )


Writer = Callable[[IO[bytes], Iterable[dict[str, Any]]], None]


@pytest.mark.parametrize(("writer", "base"), [(write_jsonl, 300), (write_csv, 300)])
def test_writing_a_table_takes_bounded_memory(writer: Writer, base: int, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        def lines() -> Iterator[dict[str, Any]]:
            return (result(index) for index in range(count))

        with (tmp_path / "out").open("wb") as opened:
            tracemalloc.start()
            writer(opened, lines())
            size = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return size

    # caches, such as a model's validator, are filled before the measurement
    peak(10)
    small, large = peak(base), peak(10 * base)
    assert large < small + 100_000

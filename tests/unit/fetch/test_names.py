from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import IO, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latentfarm.errors import InputError
from latentfarm.fetch.names import MAX_NAME_BYTES, NameTemplate, UniqueNames, name_problem
from latentfarm.fetch.serialize import TABLE_COLUMNS, flat_line, metadata_line, table_line
from latentfarm.fetch.state_file import FetchState
from latentfarm.fetch.tables import write_csv, write_jsonl, write_parquet
from latentfarm.job import Job
from latentfarm.limits import MAX_SEED

pytestmark = pytest.mark.unit


def result(index: int = 17, **fields: Any) -> dict[str, Any]:
    """A finished job's result; ``fields`` go over it."""
    request = Job(batch="cats", index=index, prompt="a cat", seed=9, width=512, height=768).request()
    receipt = {"key": f"k/{index}", "sha256": f"{index:064x}", "bytes": 30_000, "request": request}
    job = {"job": f"cats/{index}", "index": index, "row": 3, "id": None, "state": "done", "attempts": 1}
    return {**job, **receipt, **fields}


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{index:06d}.png", "000017.png"),
        ("{batch}-{row}-{seed}.png", "cats-3-9.png"),
        ("{id}-{width}x{height}.png", "x y-512x768.png"),
        ("{index:06d}", "000017.png"),
        ("{guidance_scale:.1f}", "7.5.png"),
        ("{num_inference_steps:3d}s{guidance_scale:.2f}{index}.png", None),
        ("s{num_inference_steps:03d}g{guidance_scale:.2f}-{{{index}}}.png", "s025g7.50-{17}.png"),
    ],
)
def test_a_template_fills_in_the_job_s_fields(template: str, name: str | None) -> None:
    if name is None:
        with pytest.raises(InputError, match="begins or ends with a space"):
            NameTemplate(template).name(result(id="x y"))
    else:
        assert NameTemplate(template).name(result(id="x y")) == name


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{index.__class__}.png", "index.__class__"),
        ("{index[0]}.png", "is not known"),
        ("{index!r}.png", "index!r"),
        ("{}.png", "is not known"),
        ("{0}.png", "is not known"),
        ("{prompt}.png", "is not known"),
        ("{index:{seed}}.png", "is not known"),
        ("{index:9999999999d}.png", "is not known"),
        ("{id:>9}.png", "is not known"),
        ("{index.png", "expected '}'"),
        ("}.png", "Single '}'"),
        ("{index}.gif", "pictures are .png or .webp or .jpg; leave the ending out"),
        ("{index}.png/", "holds '/'"),
        ("../{index}.png", "begins with a dot"),
        ("a/{index}.png", "holds '/'"),
        ("a\\{index}.png", "holds '\\\\'"),
        (".{index}.png", "begins with a dot"),
        ("a\n{index}.png", r"holds '\n'"),
        ("{index:099d}" + "x" * 150 + ".png", "is over 200 bytes long"),
        ("con.{index}.png", "a device on Windows"),
    ],
)
def test_a_template_that_reaches_further_or_is_unsafe_is_refused(template: str, told: str) -> None:
    with pytest.raises(InputError, match="--name-template") as caught:
        NameTemplate(template)
    assert told in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_template_or_a_clear_error(text: str) -> None:
    try:
        template = NameTemplate(text + ".png")
    except InputError:
        return
    assert name_problem(template.name(result(id="x"))) is None


@given(st.text(min_size=1, max_size=256))
def test_an_id_makes_one_plain_file_of_the_folder_or_an_error_that_names_the_job(id_: str) -> None:
    template = NameTemplate("{id}.png")
    if name_problem(f"{id_}.png") is not None:
        with pytest.raises(InputError, match=r"(?s)job cats/17: .*use \{index\}"):
            template.name(result(id=id_))
        return
    name = template.name(result(id=id_))
    assert name == f"{id_}.png"
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert Path("/out", name).resolve() == Path("/out") / name
    windows = PureWindowsPath("C:/out", name)
    assert (windows.parent, windows.name) == (PureWindowsPath("C:/out"), name)


@pytest.mark.parametrize("name", ["nul.png", "COM1.x.png", "lpt² .png", " a.png", "a..png", "a:b.png", "\u202ea.png"])
def test_names_that_another_system_would_read_otherwise_are_refused(name: str) -> None:
    assert name_problem(name) is not None


@pytest.mark.parametrize("name", ["a.png", "ä 猫 🐈.png", "console.png", "-x.png", "it's [1].png"])
def test_ordinary_names_are_safe(name: str) -> None:
    assert name_problem(name) is None


def test_a_job_that_lacks_a_field_of_the_template_is_told() -> None:
    with pytest.raises(InputError, match=r"job cats/17 has no id .* use \{index\}"):
        NameTemplate("{id}.png").name(result())


@given(st.lists(st.sampled_from(["a", "A", "b", "ß", "SS", "é", "e\u0301", "k", "\u212a"]), max_size=6))
def test_two_jobs_with_one_name_are_both_named(names: list[str]) -> None:
    same = {"A": "a", "SS": "ß", "e\u0301": "é", "\u212a": "k"}
    first: dict[str, int] = {}
    with UniqueNames() as unique:
        for index, name in enumerate(names):
            key = same.get(name, name)
            if key in first:
                with pytest.raises(InputError, match=rf"jobs cats/{first[key]} and cats/{index} would both be"):
                    unique.add(name, f"cats/{index}")
                return
            first[key] = index
            unique.add(name, f"cats/{index}")


def test_only_a_template_with_index_and_without_id_or_ending_needs_no_look_at_all_names() -> None:
    numbered = {text: NameTemplate(text).numbered for text in ("{index}", "{seed}", "{id}{index}", "x", "{index}.png")}
    assert numbered == {"{index}": True, "{seed}": False, "{id}{index}": False, "x": False, "{index}.png": False}


@pytest.mark.parametrize("ending", [".png", ".webp", ".jpg"])
def test_a_picture_keeps_the_ending_of_its_key(ending: str) -> None:
    assert NameTemplate("{index}").name(result(key=f"k/17{ending}")) == f"17{ending}"
    assert NameTemplate("{index}" + ending).name(result(key=f"k/17{ending}")) == f"17{ending}"


def test_a_template_with_another_ending_than_the_picture_s_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"job cats/17: its picture is \.webp, but .* says \.png; leave the ending out"
    ):
        NameTemplate("{index}.png").name(result(key="k/17.webp"))


@given(st.text(max_size=40))
def test_no_key_gives_a_file_another_ending_than_a_picture_s(key: str) -> None:
    assert NameTemplate("{index}").name(result(key=key)) in {"17.png", "17.webp", "17.jpg"}


def test_names_that_differ_in_their_ending_only_are_alike_for_their_strips_are() -> None:
    with UniqueNames() as unique:
        unique.add("a.png", "cats/0")
        with pytest.raises(InputError, match="jobs cats/0 and cats/1 would both be"):
            unique.add("a.webp", "cats/1")


def test_a_record_knows_what_was_fetched_and_notices_another_picture(tmp_path: Path) -> None:
    with FetchState(tmp_path / "r") as record:
        record.add(1_000_000, "ab" * 32)
    with FetchState(tmp_path / "r") as record:
        found = [record.has(1_000_000, "ab" * 32), record.has(1_000_000, "ac" * 32), record.has(5, "ab" * 32)]
        assert found == [True, False, False]
        assert not record.has(2_000_000, "00" * 32)


def test_every_field_of_a_request_has_a_column_in_tables() -> None:
    seldom: dict[str, Any] = {"guidance_interval": (0.2, 0.8), "prompt_syntax": "a1111", "clip_skip": 1}
    job = Job(batch="cats", index=0, prompt="a", seed=1, **seldom)
    assert job.request().keys() >= seldom.keys()
    assert job.request().keys() <= TABLE_COLUMNS.keys()


def test_a_wrong_row_without_a_request_is_a_line_everywhere() -> None:
    error = {"code": "invalid_row", "message": "width 65"}
    wrong = {"job": "cats/0", "index": 0, "state": "failed", "error": error, "request": {}}
    assert flat_line(wrong)["error"] == error
    cells = table_line(wrong)
    assert (cells["error_code"], cells["error_message"], cells["prompt"]) == ("invalid_row", "width 65", None)


def test_metadata_has_the_same_keys_and_types_whatever_a_job_leaves_open() -> None:
    full = metadata_line(result(id="x", columns={"a": 1}), "17.png")
    bare = metadata_line({**result(), "request": {"prompt": "a", "guidance_scale": 4, "seed": MAX_SEED}}, "17.png")
    assert {name: type(value) for name, value in full.items()} == {name: type(value) for name, value in bare.items()}
    assert (bare["guidance_scale"], bare["id"], full["columns"], bare["columns"]) == (4.0, "", '{"a": 1}', "{}")


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=4))
@example([("a\rb", "=1+1")])
def test_csv_gives_back_every_prompt_and_column_unchanged(texts: list[tuple[str, str]]) -> None:
    opened = io.BytesIO()
    request = result()["request"]
    found = [result(n, columns={"note": b}, request={**request, "prompt": a}) for n, (a, b) in enumerate(texts)]
    write_csv(opened, found)
    rows = list(csv.DictReader(io.StringIO(opened.getvalue().decode(), newline="")))
    assert [(row["prompt"], json.loads(row["columns"])["note"]) for row in rows] == texts


def test_a_parquet_table_has_one_schema_whatever_its_rows_hold(tmp_path: Path) -> None:
    from pyarrow import parquet

    wrong = {"job": "cats/1", "index": 1, "state": "failed", "error": {"code": "invalid_row", "message": "m"}}
    for name, lines in {"a": [], "b": [wrong], "c": [result(columns={"x": [1]}), wrong]}.items():
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


@pytest.mark.parametrize(("writer", "base"), [(write_jsonl, 2_000), (write_csv, 2_000)])
def test_a_table_of_ten_times_the_rows_takes_no_more_memory(writer: Writer, base: int, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        def lines() -> Iterator[dict[str, Any]]:
            return (result(index) for index in range(count))

        with (tmp_path / "out").open("wb") as opened:
            tracemalloc.start()
            writer(opened, lines())
            size = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return size

    # whatever is made once, such as a model's validator, is made now
    peak(10)
    small, large = peak(base), peak(10 * base)
    assert large < small + 100_000

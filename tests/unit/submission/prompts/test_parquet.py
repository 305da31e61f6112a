from __future__ import annotations

import sys
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import prompt_files

from latentfarm.errors import InputError
from latentfarm.job import Row
from latentfarm.submission.prompts import LocatedRow, ReadOptions, RowError, open_source

pytestmark = pytest.mark.unit

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def read(file: Path, columns: dict[str, Any], options: ReadOptions | None = None) -> list[LocatedRow | RowError]:
    parquet.write_table(pa.table(columns), file)
    return list(open_source(file, options or ReadOptions()).read())


def test_a_parquet_row_has_its_columns_and_null_is_a_missing_field(tmp_path: Path) -> None:
    columns = {"prompt": ["a cat", "a dog"], "seed": [7, None], "guidance_scale": [7.5, None]}
    assert read(tmp_path / "p.parquet", columns) == [
        LocatedRow("p.parquet row 1", Row(prompt="a cat", seed=7, guidance_scale=7.5)),
        LocatedRow("p.parquet row 2", Row(prompt="a dog")),
    ]


def test_a_whole_float_is_an_integer_because_pandas_writes_it(tmp_path: Path) -> None:
    [found] = read(tmp_path / "p.parquet", {"prompt": ["a"], "seed": [7.0]})
    assert found == LocatedRow("p.parquet row 1", Row(prompt="a", seed=7))


@pytest.mark.parametrize(
    ("columns", "reason", "message"),
    [
        ({"prompt": [1]}, "prompt", "prompt 1 is invalid; write a valid string"),
        ({"prompt": [["a"]]}, "prompt", 'prompt ["a"] is invalid; write a valid string'),
        ({"prompt": [{"en": "a"}]}, "prompt", 'prompt {"en": "a"} is invalid; write a valid string'),
        ({"prompt": ["a"], "width": ["wide"]}, "width", "width 'wide' is invalid; write a valid integer"),
        ({"prompt": ["a"], "seed": [1.5]}, "seed", "seed 1.5 is invalid; write a valid integer"),
        ({"prompt": ["a"], "seed": [date(2024, 1, 2)]}, "seed", 'seed "2024-01-02" is invalid; write a valid integer'),
        ({"prompt": [None], "seed": [1]}, "prompt is missing", "prompt is missing"),
        ({"prompt": [b"caf\xe9"]}, "not UTF-8", "prompt \"b'caf\\\\xe9'\" is not UTF-8; write text"),
    ],
)
def test_an_invalid_type_is_reported_with_column_value_and_cure(
    tmp_path: Path, columns: dict[str, Any], reason: str, message: str
) -> None:
    [problem] = read(tmp_path / "p.parquet", columns)
    assert isinstance(problem, RowError)
    assert problem.reason == reason
    assert problem.text.startswith(f"p.parquet row 1: {message}")


def test_text_that_is_not_utf8_makes_only_its_row_invalid(tmp_path: Path) -> None:
    text = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    good, bad = read(tmp_path / "p.parquet", {"prompt": text})
    assert isinstance(good, LocatedRow)
    assert bad == RowError("p.parquet row 2: prompt is not UTF-8; write text as UTF-8", "not UTF-8")


def test_kept_columns_become_json_values(tmp_path: Path) -> None:
    noon = datetime(2024, 1, 2, 12, tzinfo=UTC)
    columns = {
        "prompt": ["a"],
        "when": pa.array([noon], pa.timestamp("ns", "UTC")),
        "took": pa.array([1_500_000_000], pa.duration("ns")),
        "price": [Decimal("1.50")],
        "day": [date(2024, 1, 2)],
        "tags": [["x", "y"]],
        "nested": [{"at": date(2024, 1, 2), "n": 1}],
        "score": [float("nan")],
        "raw": [b"bytes"],
        "nothing": pa.array([None], pa.string()),
    }
    [found] = read(tmp_path / "p.parquet", columns, prompt_files.KEEP)
    assert isinstance(found, LocatedRow)
    assert found.row.columns == {
        "when": "2024-01-02T12:00:00+00:00",
        "took": "0:00:01.500000",
        "price": "1.50",
        "day": "2024-01-02",
        "tags": ["x", "y"],
        "nested": {"at": "2024-01-02", "n": 1},
        "score": None,
        "raw": "bytes",
        "nothing": None,
    }


def test_an_unknown_column_is_one_error_for_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p\.parquet: column 'widht' is not known; did you mean 'width'"):
        read(tmp_path / "p.parquet", {"prompt": ["a"], "widht": [1]})


def test_diffusiondbs_metadata_is_read_with_its_codes_of_samplers(tmp_path: Path) -> None:
    columns = {
        "image_name": ["a.png", "b.png", "c.png"],
        "prompt": ["a cat", "a dog", "a bird"],
        "part_id": pa.array([1, 1, 1], pa.uint16()),
        "seed": pa.array([5, 6, 7], pa.uint32()),
        "step": pa.array([50, 20, 20], pa.uint16()),
        "cfg": pa.array([7.0, 12.5, 7.0], pa.float32()),
        "sampler": pa.array([8, 1, 9], pa.uint8()),
        "timestamp": pa.array([datetime(2022, 8, 7, tzinfo=UTC)] * 3, pa.timestamp("us", "UTC")),
    }
    file = tmp_path / "metadata.parquet"
    with pytest.raises(InputError, match=r"column 'image_name' is not known.*--keep-columns"):
        read(file, columns)
    source = open_source(file, prompt_files.KEEP)
    cat, dog, bird = source.read()
    assert isinstance(cat, LocatedRow)
    assert isinstance(dog, LocatedRow)
    assert isinstance(bird, RowError)
    assert prompt_files.given(cat.row) == {
        "prompt": "a cat",
        "seed": 5,
        "num_inference_steps": 50,
        "guidance_scale": 7.0,
        "scheduler": "lms",
        "columns": {"image_name": "a.png", "part_id": 1, "timestamp": "2022-08-07T00:00:00+00:00"},
    }
    assert dog.row.scheduler == "ddim"
    assert bird.text.startswith("metadata.parquet row 3: sampler '9' is not supported")
    assert source.notes["sampler '8' is read as scheduler lms"] == 1


def test_the_index_of_pandas_is_passed_over_and_the_only_text_column_is_the_prompts(tmp_path: Path) -> None:
    columns = {"description": ["a cat", "a dog"], "seed": [1, 2], "__index_level_0__": [3, 9]}
    first, second = read(tmp_path / "p.parquet", columns)
    assert first == LocatedRow("p.parquet row 1", Row(prompt="a cat", seed=1))
    assert second == LocatedRow("p.parquet row 2", Row(prompt="a dog", seed=2))
    [problem] = read(tmp_path / "p.parquet", {"row": [7], "seed": [1]})
    assert isinstance(problem, RowError)
    assert problem.text.startswith("p.parquet row 1: column 'row' has 7, not a text; name the column of prompts with")


@pytest.mark.parametrize(
    "prompts",
    [
        pa.array(["a cat"]).dictionary_encode(),
        pa.array(["a cat"], pa.large_string()),
        pa.array([b"a cat"]),
        pa.array([b"a cat"], pa.large_binary()),
        pa.array([b"a cat"], pa.binary(5)),
    ],
)
def test_a_prompt_may_be_stored_as_any_kind_of_text(tmp_path: Path, prompts: Any) -> None:
    assert read(tmp_path / "p.parquet", {"prompt": prompts}) == [LocatedRow("p.parquet row 1", Row(prompt="a cat"))]


def test_a_file_that_is_not_parquet_or_is_truncated_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    parquet.write_table(pa.table({"prompt": ["a cat"] * 1000}), file)
    whole = file.read_bytes()
    for content in (b"", b"a cat", whole[:-9], whole[: len(whole) // 2], whole[:4] + bytes(60) + whole[64:]):
        with pytest.raises(InputError, match=r"p\.parquet cannot be read as parquet.*write it again"):
            prompt_files.found(file, content)


@pytest.mark.parametrize("repeated", [False, True])
def test_a_parquet_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path,
    repeated: bool,  # noqa: FBT001 - a column of few values
) -> None:
    text = "a" * (5 * 2**20)
    column = pa.DictionaryArray.from_arrays([0] * 1000, [text]) if repeated else pa.array([text] * 2)
    file = tmp_path / "bomb.parquet"
    parquet.write_table(pa.table({"prompt": column}), file, compression="zstd", use_dictionary=repeated)
    with pytest.raises(InputError, match=r"row group 0 unpacks to [\d,]{9,} bytes, the whole file has [\d,]{3,5}; wr"):
        list(open_source(file).read())


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'latentfarm\[parquet\]'"):
        prompt_files.found(tmp_path / "p.parquet", b"PAR1")


PROMPTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40).filter(str.strip)


@given(st.lists(st.tuples(PROMPTS, st.none() | st.integers(0, 2**63 - 1)), min_size=1, max_size=5), st.booleans())
def test_parquet_keeps_every_prompt_unchanged(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[tuple[str, int | None]],
    large: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    prompts, seeds = zip(*written, strict=True)
    kind = pa.large_string() if large else pa.string()
    columns = {"prompt": pa.array(prompts, kind), "seed": pa.array(seeds, pa.uint64())}
    found = read(tmp_path_factory.getbasetemp() / "same.parquet", columns)
    assert [(entry.row.prompt, entry.row.seed) for entry in found if isinstance(entry, LocatedRow)] == written


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    columns = {
        "prompt": ["a cat", None, "c'est l'été", "a dog"] * 10,
        "when": pa.array([1, 2, 3, None] * 10, pa.timestamp("ns", "UTC")),
        "tags": [["x"], [], None, ["y", "z"]] * 10,
        "kind": pa.array(["x", "y"] * 20).dictionary_encode(),
    }
    file = tmp_path_factory.mktemp("parquet") / "whole.parquet"
    parquet.write_table(pa.table(columns), file)
    return file.read_bytes()


@given(changes=st.dictionaries(st.integers(0, 10_000), st.integers(0, 255), max_size=8))
def test_a_damaged_file_gives_rows_row_errors_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, changes: dict[int, int]
) -> None:
    damaged = bytearray(whole)
    for place, byte in changes.items():
        damaged[place % len(damaged)] = byte
    file = tmp_path_factory.getbasetemp() / "damaged.parquet"
    with suppress(InputError):
        for found in prompt_files.found(file, bytes(damaged), prompt_files.KEEP):
            assert isinstance(found, LocatedRow | RowError)

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.job import Defaults, Job, Row, default_seed
from latentfarm.job_state import INVALID_ROW
from latentfarm.limits import MAX_SEED, PART_JOBS
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.manifest import ManifestReader, Part, PartWriter, read_header
from latentfarm.storage.part_codec import pack
from latentfarm.storage.results import read_part

pytestmark = pytest.mark.unit


def written(*rows: Row | str, batch: str = "b", **defaults: Any) -> list[Part]:
    """Write rows; a string is an invalid row with this error."""
    writer = PartWriter(batch, Defaults(**defaults))
    parts: list[Part] = []
    for number, row in enumerate(rows):
        parts += writer.add_invalid(row, number) if isinstance(row, str) else writer.add(row, number)
    return [*parts, *writer.flush()]


def lines(*parts: Part) -> list[dict[str, Any]]:
    return [json.loads(line) for part in parts for line in part.lines.splitlines()]


def test_a_rows_own_field_takes_precedence_over_the_batchs_default() -> None:
    [line] = lines(*written(Row(prompt="a", width=128), width=64, height=64))
    assert (line["width"], line["height"]) == (128, 64)


def test_defaults_are_stored_explicitly() -> None:
    [line] = lines(*written(Row(prompt="a")))
    assert (line["num_inference_steps"], line["guidance_scale"], line["negative_prompt"]) == (25, 7.5, "")


def test_images_per_prompt_makes_that_many_jobs_with_rising_seeds() -> None:
    found = lines(*written(Row(prompt="first"), Row(prompt="a", seed=7, num_images_per_prompt=3, id="x")))
    assert [(line["index"], line["seed"], line["row"], line["id"]) for line in found[1:]] == [
        (1, 7, 1, "x"),
        (2, 8, 1, "x"),
        (3, 9, 1, "x"),
    ]


def test_the_last_seed_is_followed_by_zero() -> None:
    found = lines(*written(Row(prompt="a", seed=MAX_SEED, num_images_per_prompt=2)))
    assert [line["seed"] for line in found] == [MAX_SEED, 0]


def test_a_row_without_a_seed_gets_one_from_batch_and_index() -> None:
    found = lines(*written(Row(prompt="a"), Row(prompt="b", num_images_per_prompt=2), batch="cats"))
    first = default_seed("cats", 1)
    assert [line["seed"] for line in found] == [default_seed("cats", 0), first, first + 1]


def test_an_invalid_row_keeps_its_place_as_a_failed_job() -> None:
    [part] = written(Row(prompt="a"), "line 2: width 65", Row(prompt="b"))
    assert part.invalid == {1: {"code": INVALID_ROW, "message": "line 2: width 65"}}
    assert [line.get("prompt") for line in lines(part)] == ["a", None, "b"]
    assert lines(part)[1]["invalid"]["message"] == "line 2: width 65"


def test_parts_have_1000_jobs_and_the_last_part_has_the_rest() -> None:
    parts = written(*[Row(prompt="a", num_images_per_prompt=1700)] * 2)
    assert [(part.number, part.first, part.total) for part in parts] == [
        (0, 0, 1000),
        (1, 1000, 2000),
        (2, 2000, 3000),
        (3, 3000, 3400),
    ]
    assert [line["index"] for line in lines(*parts)] == list(range(3400))


rows = st.builds(
    Row,
    prompt=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30),
    seed=st.none() | st.integers(0, MAX_SEED),
    num_images_per_prompt=st.none() | st.integers(1, 3),
    width=st.none() | st.integers(8, 256).map(lambda side: side * 8),
    columns=st.none() | st.dictionaries(st.text("abc", max_size=3), st.integers() | st.text("xyz"), max_size=3),
)


@given(st.lists(rows, max_size=12))
def test_every_line_is_a_valid_job_and_the_digest_depends_on_the_content(found: list[Row]) -> None:
    parts = written(*found)
    for line in lines(*parts):
        Job.model_validate({**line, "batch": "b"})
    assert [part.parts_digest for part in written(*found)] == [part.parts_digest for part in parts]
    if found:
        changed = [*found[:-1], found[-1].model_copy(update={"prompt": found[-1].prompt + "!"})]
        assert written(*changed)[-1].parts_digest != parts[-1].parts_digest


def test_a_digest_depends_on_earlier_parts_too() -> None:
    many = [Row(prompt="a")] * (PART_JOBS + 1)
    first, second = written(*many)
    other_first, other_second = written(Row(prompt="b"), *many[1:])
    assert first.parts_digest != other_first.parts_digest
    assert second.lines == other_second.lines
    assert second.parts_digest != other_second.parts_digest


class OneObject:
    """A bucket that returns the same bytes for every key."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def get(self, _key: str) -> bytes:
        return self.body


def bucket_with(body: bytes) -> Bucket:
    return cast("Bucket", OneObject(body))


def test_a_manifest_of_version_0_1_with_trace_and_chain_is_read() -> None:
    entry = {"index": 0, "row": 0, "prompt": "a", "seed": 1, "trace": True}
    assert ManifestReader(bucket_with(pack([entry]))).job("b", 0).save_intermediates
    header = read_header(bucket_with(b'{"batch": "b", "model": "mini", "digest": "d", "chain": "ab"}'), "b")
    assert header is not None
    assert header.parts_digest == "ab"
    again = read_header(bucket_with(header.model_dump_json().encode()), "b")
    assert again == header


def test_a_receipt_of_version_0_1_with_trace_is_read() -> None:
    strip = {"key": "batches/b/traces/00000/00000000-1.png", "sha256": "0" * 64}
    [line] = read_part(bucket_with(pack([{"index": 0, "state": "done", "trace": strip}])), "b", 0)
    assert line["intermediates"] == strip
    assert "trace" not in line

"""What an enemy may write to the bucket, ask for by a prompt file or publish as a model, and what becomes of it."""

from __future__ import annotations

import gzip
import tracemalloc
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.bucket import Bucket
from latentfarm.errors import InputError
from latentfarm.job import (
    MAX_COLUMNS_BYTES,
    MAX_GUIDANCE,
    MAX_OPTIONS_BYTES,
    MAX_PROMPT_BYTES,
    MAX_SEED,
    PART_JOBS,
    Defaults,
    Job,
    Row,
)
from latentfarm.jsonl import MAX_PART_BYTES, pack, unpack
from latentfarm.manifest import ManifestReader, PartWriter

pytestmark = pytest.mark.unit

CANARY = "canary-of-a-prompt"


class Held:
    """A bucket whose every object is ``body``."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def get(self, _key: str) -> bytes:
        return self.body


def reader(body: bytes) -> ManifestReader:
    return ManifestReader(cast("Bucket", Held(body)))


def line(**fields: Any) -> dict[str, Any]:
    return {"index": 0, "row": 0, "prompt": CANARY, "seed": 1, **fields}


# -- a forged part ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A few MB that stand for two GB."""
    megabyte = gzip.compress(b" " * 2**20)
    return megabyte * 2048


def test_a_gzip_bomb_is_refused_within_bounded_memory(bomb: bytes) -> None:
    assert len(bomb) < 4 * 2**20
    tracemalloc.start()
    with pytest.raises(InputError, match=r"batches/b/manifest/part-00000.jsonl.gz is more than .* bytes long unpacked"):
        reader(bomb).job("b", 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_PART_BYTES


def test_the_largest_part_that_rows_within_their_limits_make_is_read() -> None:
    worst = "\x01" * MAX_PROMPT_BYTES
    options = {"a": "o" * (MAX_OPTIONS_BYTES - 12)}
    columns = {"c": "x" * (MAX_COLUMNS_BYTES - 12)}
    row = Row(
        prompt=worst,
        negative_prompt=worst,
        id="\x01" * 256,
        width=2048,
        height=2048,
        num_inference_steps=500,
        guidance_scale=MAX_GUIDANCE - 2**-40,
        seed=MAX_SEED,
        scheduler="KDPM2AncestralDiscreteScheduler",
        scheduler_options=options,
        columns=columns,
        trace=True,
        num_images_per_prompt=PART_JOBS,
    )
    [part] = PartWriter("b", Defaults()).add(row, 0)
    assert 0.85 * MAX_PART_BYTES < len(part.lines) < MAX_PART_BYTES
    assert reader(gzip.compress(part.lines, 1)).job("b", PART_JOBS - 1).prompt == worst


def test_a_part_of_brackets_does_not_become_gigabytes_of_objects() -> None:
    brackets = b'{"index":0,"prompt":[' + b"{}," * (MAX_PART_BYTES // 3 - 10) + b"{}]}"
    forged = reader(gzip.compress(brackets, 1))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"has a line of 83,886,\d{3} bytes"):
        forged.job("b", 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_PART_BYTES


def test_more_lines_than_a_part_has_are_refused() -> None:
    assert len(unpack(pack([line()] * PART_JOBS))) == PART_JOBS
    with pytest.raises(InputError, match="more than 1,000 lines"):
        unpack(pack([line()] * (PART_JOBS + 1)))


@given(st.binary(max_size=200) | st.binary(max_size=200).map(gzip.compress))
def test_any_bytes_are_a_part_or_a_clear_error(body: bytes) -> None:
    try:
        reader(body).job("b", 0)
    except InputError:
        return
    raise AssertionError("random bytes are no job")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": CANARY * 300},
        {"width": 64_000, "height": 64_000},
        {"num_inference_steps": 10**9},
        {"negative_prompt": [CANARY]},
        {"scheduler_options": {"x": CANARY * 1_000}},
        {"model": "/etc/passwd"},
        {"model_source": "evil/model"},
        {"custom_pipeline": "evil/pipeline"},
        {"scheduler": "os.system"},
        {"columns": {"x": CANARY * 1_000}},
        {"seed": -1},
    ],
)
def test_a_worker_refuses_a_forged_job_and_repeats_nothing_of_its_prompt(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="job b/0 is not valid in the manifest") as caught:
        reader(pack([line(**fields)])).job("b", 0)
    assert CANARY not in str(caught.value)
    assert next(iter(fields)) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_prompt_of_a_gigabyte_is_refused_unread() -> None:
    before, after = gzip.compress(b'{"index":0,"seed":1,"prompt":"'), gzip.compress(b'"}\n')
    forged = reader(before + gzip.compress(b"x" * 2**20) * 1024 + after)
    tracemalloc.start()
    with pytest.raises(InputError, match="bytes long unpacked"):
        forged.job("b", 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_PART_BYTES


def test_a_job_can_name_no_weights() -> None:
    assert not {"model", "model_source", "revision", "custom_pipeline", "lora"} & Job.model_fields.keys()
    assert not {"model", "model_source", "revision", "custom_pipeline", "lora"} & Row.model_fields.keys()

"""What an enemy may write to the bucket, ask for by a prompt file or publish as a model, and what becomes of it."""

from __future__ import annotations

import gzip
import tracemalloc
from contextlib import suppress
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
from latentfarm.ledger import Ledger
from latentfarm.manifest import ManifestReader, PartWriter
from latentfarm.settings import Settings, redis_problem

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


# -- an open Redis ---------------------------------------------------------------------------------------------


def with_redis(url: str, **fields: Any) -> Settings:
    return Settings().model_copy(update={"redis_url": url, "bucket": "b", **fields})


@pytest.mark.parametrize(
    "url",
    [
        "redis://farm.example",
        "redis://user@farm.example",
        "redis://:@farm.example",
        "redis://10.0.0.7:6379/1",
        "redis://[2001:db8::1]:6379",
        "redis://0.0.0.0",
        "redis://127.0.0.1.example",
        "redis://127.0.0.1%2eexample",
        "redis://127.1",
        "redis://localhost.example",
        "redis:///?host=farm.example",
        "redis://farm.example?path=/run/redis.sock",
        "rediss://farm.example?ssl_cert_reqs=none",
        "rediss://farm.example?ssl_check_hostname=false",
    ],
)
def test_a_redis_that_is_open_to_a_network_is_refused_unless_it_is_meant(url: str) -> None:
    with pytest.raises(InputError, match=r"LATENTFARM_REDIS_URL leads to .* with neither password nor verified TLS"):
        with_redis(url).require()
    assert with_redis(url, allow_insecure_redis=True).require().redis_url == url


@pytest.mark.parametrize(
    "url",
    [
        "unix:///run/redis.sock",
        "redis://localhost:6379",
        "redis://127.0.0.1",
        "redis://127.9.9.9",
        "redis://[::1]",
        "redis:///1",
        "rediss://:secret@farm.example",
        "rediss://farm.example?ssl_certfile=me.pem",
    ],
)
def test_a_redis_of_this_machine_or_behind_tls_is_used_without_a_word(url: str) -> None:
    assert redis_problem(url) is None
    assert with_redis(url).require().redis_url == url


def test_a_password_in_clear_is_warned_of_once_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with_redis("redis://:hunter2@clear.example").require()
    [record] = caplog.records
    assert "leads to clear.example port 6379 without verified TLS" in record.getMessage()
    assert "hunter2" not in record.getMessage()
    with_redis("redis://:hunter2@quiet.example", allow_insecure_redis=True).require()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "url", ["redis://:hunter2@h:port", "redis://h:hunter2", "hunter2", "redis://h?max_connections=hunter2", "http://h"]
)
def test_a_url_that_cannot_be_read_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InputError, match="LATENTFARM_REDIS_URL is no URL of a Redis") as caught:
        with_redis(url).require()
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=40), st.sampled_from(["redis://", "rediss://", "unix://", "redis://127.0.0.1@", ""]))
def test_any_url_is_judged_or_refused(text: str, scheme: str) -> None:
    with suppress(InputError):
        found = redis_problem(scheme + text)
        assert found is None or "LATENTFARM_REDIS_URL leads to" in found.text


@pytest.mark.parametrize(
    "url", ["redis://me:hunter2@h:1/0", "unix:///x.sock?password=hunter2", "redis://h?username=me&password=hunter2"]
)
def test_no_password_of_redis_is_shown_by_settings_or_errors(url: str) -> None:
    assert "hunter2" not in Ledger.connect(url).where
    assert "hunter2" not in repr(with_redis(url))


def test_that_an_open_redis_is_meant_is_handed_to_workers() -> None:
    assert with_redis("redis://h").environment().get("LATENTFARM_ALLOW_INSECURE_REDIS") is None
    allowed = with_redis("redis://h", allow_insecure_redis=True).environment()
    assert allowed["LATENTFARM_ALLOW_INSECURE_REDIS"] == "true"

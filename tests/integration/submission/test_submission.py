"""Submissions: streamed, killed, continued, refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.leasing import keys_left

from latentfarm import Batch, Farm, InputError, InvalidRowsError, UnavailableError
from latentfarm.batch_kind import BatchKind
from latentfarm.job_state import JobState
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import manifest_key
from latentfarm.storage.part_codec import unpack
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.request import SubmitOptions

pytestmark = pytest.mark.integration

STREAMED = SubmitOptions(validate_first=False)
INVALID = {"prompt": "b", "width": 65}


class WatchedBucket(Bucket):
    """The real store, calling back at each put of a manifest part."""

    def __init__(self, real: Bucket, on_part: Callable[[str], None]) -> None:
        super().__init__(real.name, where=real.where, open_session=lambda: (real.client, real.credentials))
        self.on_part = on_part

    def put(self, key: str, body: bytes, *, content_type: str = "application/octet-stream") -> None:
        if "/manifest/" in key:
            self.on_part(key)
        super().put(key, body, content_type=content_type)


def watched(farm: Farm, on_part: Callable[[str], None]) -> Farm:
    return Farm(replace(farm.connection, bucket=WatchedBucket(farm.bucket, on_part)))


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"p{n}", "seed": n} for n in range(count)]


def work(farm: Farm) -> int:
    """Do what a worker does, without an image."""
    made = 0
    while found := farm.ledger.lease("mini", "w", 1000, lease_s=30):
        farm.ledger.commit([(lease, {"key": "k", "sha256": "s"}) for lease in found])
        made += len(found)
    return made


def manifest(farm: Farm, batch: str) -> list[Any]:
    keys = sorted(key for key in farm.bucket.keys(f"batches/{batch}/manifest/"))
    return [line for key in keys for line in unpack(farm.bucket.get(key))]


def test_the_same_submission_again_finds_its_batch_and_renders_nothing_twice(farm: Farm) -> None:
    first = farm.submit(["a", "b"])
    work(farm)
    again = farm.submit(["a", "b"])
    assert again.name == first.name
    assert again.status().done == 2


def test_another_file_under_the_same_name_is_refused_with_both_digests_and_changes_nothing(farm: Farm) -> None:
    farm.submit(["a"], batch="cats")
    before = farm.bucket.get(manifest_key("cats", 0))
    theirs = farm.ledger.batch("cats").digest[:12]
    with pytest.raises(InputError, match=rf"its digest is {theirs}, yours [0-9a-f]{{12}}") as caught:
        farm.submit(["b"], batch="cats")
    assert len(set(re.findall("[0-9a-f]{12}", str(caught.value)))) == 2
    assert farm.bucket.get(manifest_key("cats", 0)) == before


@pytest.mark.parametrize("option", [{"model": "sd14"}, {"num_inference_steps": 30}])
def test_other_options_make_another_batch(farm: Farm, option: dict[str, Any]) -> None:
    farm.submit(["a"], batch="cats")
    with pytest.raises(InputError, match="other content or options"):
        farm.submit(["a"], batch="cats", **option)


def test_with_one_invalid_row_nothing_is_enqueued(farm: Farm) -> None:
    with pytest.raises(InvalidRowsError, match="row 2: width 65 is not a multiple of 8; write 64 or 72"):
        farm.submit(["a", INVALID], batch="cats")
    assert keys_left(farm.ledger) == []
    assert list(farm.bucket.keys("")) == []


def test_jobs_of_the_first_part_are_leased_while_more_rows_arrive(farm: Farm) -> None:
    leased: list[int] = []

    def arriving() -> Iterator[str]:
        for number in range(15_000):
            # the number of parts in flight is limited, so the first has been appended by now
            if number == 14_000:
                assert farm.batch("cats").status().state == "opening"
                leased.extend(lease.index for lease in farm.ledger.lease("mini", "w", 2, lease_s=30))
            yield f"p{number}"

    batch = farm.submit(arriving(), batch="cats")
    assert leased == [0, 1]
    assert (batch.status().state, batch.status().total) == ("open", 15_000)


@pytest.mark.parametrize("killed_at", [0, 1, 3, 4])
def test_a_killed_submission_continues_after_its_stored_parts(farm: Farm, killed_at: int) -> None:
    stored: list[str] = []

    def kill(key: str) -> None:
        if key == manifest_key("cats", killed_at):
            raise KeyboardInterrupt
        stored.append(key)

    with pytest.raises(KeyboardInterrupt):
        watched(farm, kill).submit(prompts(4500), batch="cats")
    assert farm.batch("cats").status().state == "opening"
    opened = farm.batch("cats").status().total
    stored.clear()
    batch = watched(farm, stored.append).submit(prompts(4500), batch="cats")
    assert (batch.status().state, batch.status().total) == ("open", 4500)
    # parts whose jobs could be leased were not stored again
    assert len(stored) == 5 - opened // 1000
    assert work(farm) == 4500
    assert batch.status().complete
    farm.submit(prompts(4500), batch="in-one-go")
    assert manifest(farm, "cats") == manifest(farm, "in-one-go")


def test_an_outage_while_storing_is_raised_and_the_same_command_continues(farm: Farm) -> None:
    def refuse(key: str) -> None:
        if key == manifest_key("cats", 2):
            raise UnavailableError("503 Slow Down")

    with pytest.raises(UnavailableError, match="503"):
        watched(farm, refuse).submit(prompts(4500), batch="cats")
    assert farm.batch("cats").status().total == 2000
    assert farm.submit(prompts(4500), batch="cats").status().total == 4500


def test_a_stream_continues_if_it_begins_with_the_stored_rows_and_is_refused_if_not(farm: Farm) -> None:
    def broken(rows: int) -> Iterator[dict[str, Any]]:
        yield from prompts(rows)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        farm.submit(broken(12_000), batch="cats")
    stored = farm.batch("cats").status().total
    assert stored >= 1000
    with pytest.raises(InputError, match="other content"):
        farm.submit(({"prompt": "another"} for _ in range(13_000)), batch="cats")
    with pytest.raises(InputError, match="other content"):
        farm.submit(iter(prompts(500)), batch="cats")
    assert farm.submit(iter(prompts(12_500)), batch="cats").status().total == 12_500
    # of a complete batch, the same stream finds it and another is refused
    assert farm.submit(iter(prompts(12_500)), batch="cats").status().state == "open"
    with pytest.raises(InputError, match="other content"):
        farm.submit(iter(prompts(12_501)), batch="cats")


def test_a_stream_killed_before_its_end_is_recorded_continues_and_a_longer_one_is_refused(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_jobs = farm.ledger.append_jobs

    def killed_at_the_end(batch: str, *, closed: bool, **more: Any) -> Any:
        if closed:
            raise KeyboardInterrupt
        return append_jobs(batch, closed=closed, **more)

    with monkeypatch.context() as patch:
        patch.setattr(farm.ledger, "append_jobs", killed_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            farm.submit(iter(prompts(1500)), batch="cats")
    assert (farm.batch("cats").status().state, farm.batch("cats").status().total) == ("opening", 1500)
    assert work(farm) == 1500
    with pytest.raises(InputError, match="other content"):
        farm.submit(iter(prompts(1600)), batch="cats")
    batch = farm.submit(iter(prompts(1500)), batch="cats")
    assert (batch.status().state, batch.status().done) == ("complete", 1500)


def test_two_submissions_of_one_file_at_once_end_in_one_batch(farm: Farm) -> None:
    inner: list[Batch] = []

    def overtake(_: str) -> None:
        if not inner:
            inner.append(farm.submit(prompts(1500), batch="cats"))

    batch = watched(farm, overtake).submit(prompts(1500), batch="cats")
    assert batch.status().total == 1500
    assert work(farm) == 1500


def test_in_a_streamed_submission_an_invalid_row_is_a_failed_job_with_its_error(farm: Farm) -> None:
    rows = [{**INVALID, "id": f"r{n}"} if n == 1200 else {"prompt": "a", "id": f"r{n}"} for n in range(1500)]
    batch = farm.submit(rows, batch="cats", options=STREAMED)
    assert batch.rejected == {"width": 1}
    [failed] = batch.jobs(state=JobState.FAILED)
    assert failed.id == "cats/1200"
    assert failed.error is not None
    assert failed.error["code"] == "invalid_row"
    assert "width 65 is not a multiple of 8" in failed.error["message"]
    assert work(farm) == 1499
    status = batch.wait()
    assert (status.state, status.done, status.errors) == ("complete", 1499, {"invalid_row": 1})
    line = list(batch.results())[1200]
    assert (line["state"], line["error"]["code"]) == ("failed", "invalid_row")
    with pytest.raises(InputError, match="correct the file"):
        batch.retry(code="invalid_row")
    assert batch.retry() == 0


def test_over_one_per_cent_of_invalid_rows_stop_a_stream_and_pause_the_batch(farm: Farm) -> None:
    def rows() -> list[dict[str, Any]]:
        return [INVALID if 3000 <= n < 3100 else {"prompt": "a"} for n in range(6000)]

    with pytest.raises(InvalidRowsError, match=r"batch cats is paused with its first 3,000 jobs") as caught:
        farm.submit(rows(), batch="cats", options=STREAMED)
    assert caught.value.reasons == {"width": 31}
    status = farm.batch("cats").status()
    assert (status.state, status.total) == ("paused", 3000)
    assert status.needs_attention
    assert work(farm) == 0
    tolerant = SubmitOptions(validate_first=False, max_invalid=0.05)
    batch = farm.submit(rows(), batch="cats", options=tolerant)
    assert (batch.status().state, batch.rejected) == ("open", {"width": 100})
    assert work(farm) == 5900


def test_a_submission_whose_last_header_was_stored_without_an_answer_continues(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, keys = farm.bucket.put, []

    def unanswered(key: str, body: bytes, **more: Any) -> None:
        put(key, body, **more)
        keys.append(key)
        if key.endswith("batch.json") and b'"total": 3' in body:
            raise UnavailableError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(farm.bucket, "put", unanswered)
        for _ in range(2):
            with pytest.raises(UnavailableError, match="no answer"):
                farm.submit(["a", "b", "c"], batch="cats")
    assert sum(key.endswith("batch.json") for key in keys) == 2
    again = farm.submit(["a", "b", "c"], batch="cats").status()
    assert (again.state, again.total) == ("open", 3)


def test_rows_that_are_all_invalid_leave_nothing_behind(farm: Farm) -> None:
    for options in (SubmitOptions(), STREAMED):
        with pytest.raises(InvalidRowsError, match="nothing was enqueued"):
            farm.submit([INVALID] * 3000, batch="cats", options=options)
        assert keys_left(farm.ledger) == []
        assert list(farm.bucket.keys("")) == []


def test_a_stream_that_breaks_off_leaves_a_paused_batch(farm: Farm, tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes(b"a cat\n" * 2500 + b"x" * (2 << 20))
    with pytest.raises(InputError, match=r"(?s)line 2501.*is paused with its first 2,000 jobs"):
        farm.submit(file, batch="cats", options=STREAMED)
    assert farm.batch("cats").status().state == "paused"
    with pytest.raises(InputError, match="line 2501"):
        farm.submit(file, batch="dogs")
    assert "dogs" not in farm.ledger.batches()


@pytest.mark.parametrize("options", [SubmitOptions(), STREAMED])
def test_a_source_without_rows_is_an_error_and_leaves_nothing(farm: Farm, options: SubmitOptions) -> None:
    with pytest.raises(InputError, match="has no prompts"):
        farm.submit([], batch="cats", options=options)
    assert farm.ledger.batches() == []


def test_a_cancelled_batch_gets_no_more_jobs_and_its_submission_ends(farm: Farm) -> None:
    def arriving() -> Iterator[str]:
        for number in range(3000):
            if number == 2500:
                farm.batch("cats").cancel()
            yield "a"

    with pytest.raises(InputError, match="was cancelled while it was being submitted"):
        farm.submit(arriving(), batch="cats")
    with pytest.raises(InputError, match="is cancelled; choose another"):
        farm.submit(iter(["a"]), batch="cats")


def test_a_sweep_multiplies_every_row_and_ids_stay_those_of_the_rows(farm: Farm) -> None:
    sweep = Expansion.parse(["guidance_scale=5,7.5", "seed=1..3"])
    batch = farm.submit([{"prompt": "a", "id": "x"}, "b"], batch="cats", expansion=sweep)
    found = [(line["row"], line["guidance_scale"], line["seed"]) for line in manifest(farm, "cats")]
    assert found == [(row, scale, seed) for row in (0, 1) for scale in (5, 7.5) for seed in (1, 2, 3)]
    assert {line.get("id") for line in manifest(farm, "cats")[:6]} == {"x"}
    with pytest.raises(InputError, match="other content or options"):
        farm.submit([{"prompt": "a", "id": "x"}, "b"], batch=batch.name)


def test_a_canary_pauses_the_batch_and_resume_renders_the_rest(farm: Farm) -> None:
    batch = farm.submit(prompts(20), batch="cats", options=SubmitOptions(canary=3))
    assert work(farm) == 3
    status = batch.wait(timeout_s=5)
    assert (status.state, status.done, status.paused) == ("paused", 3, "canary: the first 3 jobs have ended")
    batch.resume()
    assert work(farm) == 17
    assert batch.wait().complete


def test_kept_columns_are_in_the_results(farm: Farm, tmp_path: Path) -> None:
    from latentfarm.submission.prompts import ReadOptions

    file = tmp_path / "p.csv"
    file.write_text("caption,mood\na cat,calm\n")
    reading = ReadOptions(prompt_column="caption", keep_columns=True)
    batch = farm.submit(file, reading=reading)
    work(farm)
    [line] = batch.results()
    assert (line["request"]["prompt"], line["columns"]) == ("a cat", {"mood": "calm"})
    assert "columns" not in line["request"]


def test_an_interactive_batch_needs_two_objects_and_two_calls_of_the_ledger(farm: Farm) -> None:
    requests: list[str] = []
    events = farm.bucket.client.meta.events

    def count(request: Any, **_: Any) -> None:
        requests.append(f"{request.method} {request.url.rpartition('/')[2]}")

    options = SubmitOptions(kind=BatchKind.INTERACTIVE, owner="alice", keep_s=60)
    # the scripts are loaded
    farm.submit(["a"], batch="first", options=options)
    events.register("before-send.s3", count)
    farm.ledger.redis.config_resetstat()
    try:
        batch = farm.submit(["a", "b"], batch="second", options=options)
    finally:
        events.unregister("before-send.s3", count)
    assert sorted(requests) == ["PUT batch.json", "PUT part-00000.jsonl.gz"]
    commands: Any = farm.ledger.redis.info("commandstats")
    assert commands["cmdstat_evalsha"]["calls"] == 2
    # no doorbell: the ledger signals the jobs itself
    assert "cmdstat_lpush" not in commands
    assert [job.index for job in farm.ledger.lease("mini", "w", 9, lease_s=30) if job.batch == batch.name] == [0, 1]

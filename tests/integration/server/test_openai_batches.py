"""OpenAI's Batch API by its own client, over real servers and a real worker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Batch
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.support.http_server import RunningServer

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import BatchState
from latentfarm.farm import Farm
from latentfarm.server.openai import stored_batches
from latentfarm.server.openai.batch_submission import make_request
from latentfarm.server.openai.sweep import sweep_batches
from latentfarm.storage.deletion import delete_batch
from latentfarm.submission.request import SubmitOptions
from latentfarm.submission.submit import Submission

pytestmark = pytest.mark.integration

SMALL = {"width": 64, "height": 64, "num_inference_steps": 1, "guidance_scale": 0}


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def waiting(serving: Serving) -> Iterator[openai.OpenAI]:
    """A client of a server whose only model has no worker."""
    url = serving(default_model="waiting").url
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def line(custom_id: str | None, url: str = "/v1/images/generations", **body: Any) -> str:
    fields = {"model": "mini", "prompt": "a red circle", **SMALL, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": fields})


def create(client: openai.OpenAI, lines: list[str], **more: Any) -> Batch:
    file = client.files.create(file=("requests.jsonl", "\n".join(lines).encode()), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h", **more
    )


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    """Return a batch as it is when it has ended."""
    found = batch

    def is_ended() -> bool:
        nonlocal found
        found = client.batches.retrieve(batch.id)
        return found.status in {"completed", "failed", "cancelled"}

    until(is_ended, timeout_s=60)
    return Batch.model_validate(found.model_dump(), strict=True)


def output(client: openai.OpenAI, file: str | None) -> dict[str, dict[str, Any]]:
    """Return the lines of an output or error file by their custom_id."""
    if file is None:
        return {}
    lines = [json.loads(found) for found in client.files.content(file).text.splitlines()]
    return {found["custom_id"]: found for found in lines}


@pytest.mark.usefixtures("rendering")
def test_lines_become_images_and_invalid_ones_errors(client: openai.OpenAI, farm: Farm) -> None:
    lines = [
        line("by url"),
        line("bytes", response_format="b64_json", n=2),
        line("too small", width=8),
        line("another model", model="sdxl"),
        line("a variation", url="/v1/images/variations"),
        line(None),
        '"a prompt"',
    ]
    batch = ended(client, create(client, lines, metadata={"customer": "7"}))
    assert batch.status == "completed"
    assert batch.metadata == {"customer": "7"}
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 8, "completed": 3, "failed": 5}
    done, errors = output(client, batch.output_file_id), output(client, batch.error_file_id)
    assert set(done) == {"by url", "bytes"}
    assert done["by url"]["response"]["body"]["data"][0]["url"].startswith("http")
    assert [set(entry) for entry in done["bytes"]["response"]["body"]["data"]] == [{"b64_json"}, {"b64_json"}]
    assert set(errors) == {"too small", "another model", "a variation", f"{batch.id}/6", f"{batch.id}/7"}
    assert "requests.jsonl line 3: width 8" in errors["too small"]["error"]["message"]
    assert farm.ledger.batch(batch.id).kind is BatchKind.OPENAI
    # the files of batches are listed with those that were uploaded
    assert [file.id for file in client.files.list(purpose="batch_output")] == [
        batch.error_file_id,
        batch.output_file_id,
    ]
    assert client.files.retrieve(str(batch.output_file_id)).purpose == "batch_output"


def test_a_batch_of_2000_lines_is_cancelled(waiting: openai.OpenAI, farm: Farm) -> None:
    batch = create(waiting, [line(f"{number}", model="waiting") for number in range(2_000)])
    until(lambda: waiting.batches.retrieve(batch.id).status == "in_progress")
    running = waiting.batches.retrieve(batch.id)
    assert running.in_progress_at is not None
    assert running.output_file_id is None
    assert running.request_counts is not None
    assert running.request_counts.total == 2_000
    cancelled = waiting.batches.cancel(batch.id)
    assert (cancelled.status, cancelled.output_file_id) == ("cancelled", None)
    assert cancelled.cancelled_at is not None
    assert waiting.batches.cancel(batch.id) == cancelled
    errors = output(waiting, cancelled.error_file_id)
    assert list(errors) == [f"{number}" for number in range(2_000)]
    assert {found["error"]["code"] for found in errors.values()} == {"batch_cancelled"}
    assert farm.ledger.batch(batch.id).state is BatchState.CANCELLED


def test_an_invalid_file_fails_its_batch(waiting: openai.OpenAI, farm: Farm) -> None:
    files = [
        ("", "invalid_input_file", None, "has no prompts"),
        ("a red circle\nwater\n", "invalid_line", 1, "is not JSON"),
        ('\n{"model": "waiting"}\n', "invalid_line", 2, "custom_id null is missing"),
        ("\x1f\x8b", "invalid_line", 1, "is not JSON"),
        (line("a", model="waiting") + "\n" + "x" * 2_000_000, "invalid_input_file", 2, "is longer than"),
    ]
    batches = [create(waiting, [content]) for content, *_ in files]
    for created, (_, code, where, message) in zip(batches, files, strict=True):
        batch = ended(waiting, created)
        assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
        assert batch.failed_at is not None
        assert batch.errors is not None
        assert batch.errors.data is not None
        assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, where)
        assert message in (batch.errors.data[0].message or "")
        with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'failed'"):
            waiting.batches.cancel(batch.id)
    # nothing else is left of them
    until(lambda: farm.ledger.batches() == [])
    assert [found.id for found in waiting.batches.list(limit=2)] == [batch.id for batch in reversed(batches)]


def test_a_request_for_a_batch_is_refused_with_its_cure(waiting: openai.OpenAI, serving: Serving) -> None:
    file = waiting.files.create(file=line("a", model="other").encode(), purpose="batch").id
    good = {"input_file_id": file, "endpoint": "/v1/images/generations", "completion_window": "24h"}
    client = serving(default_model="waiting", max_batch_lines=1).client

    def refusal(**changed: object) -> tuple[int, str, str]:
        answer = client.post("/v1/batches", json={**good, **changed})
        error = answer.json()["error"]
        return answer.status_code, error["param"], error["message"]

    status, param, message = refusal()
    assert (status, param) == (404, "model")
    # the worker of other tests may report itself
    assert message.startswith("the model 'other' is not served; write one of ")
    assert refusal(endpoint="/v1/responses")[:2] == (400, "endpoint")
    assert refusal(completion_window="1h")[:2] == (400, "completion_window")
    assert refusal(input_file_id="file-1")[:2] == (404, "input_file_id")
    assert refusal(metadata={"k": "v" * 513})[:2] == (400, "metadata")
    assert refusal(output_expires_after={"anchor": "created_at", "seconds": 1})[1] == "output_expires_after.seconds"
    image = waiting.files.create(file=b"x", purpose="vision").id
    assert refusal(input_file_id=image)[1:] == (
        "input_file_id",
        "the file's purpose is 'vision'; upload it with the purpose 'batch'",
    )
    long = waiting.files.create(file=b"\n{}", purpose="batch").id
    assert refusal(input_file_id=long)[2] == "the file has 2 lines, and a batch at most 1; split it"


def test_a_batch_whose_server_died_is_submitted_when_it_is_read(waiting: openai.OpenAI, farm: Farm) -> None:
    batch = create(waiting, [line(f"{number}", model="waiting") for number in range(1_500)])
    until(lambda: stored_batches.read_outcome(farm.bucket, batch.id) is not None)
    stored = stored_batches.read_batch(farm.bucket, batch.id)
    assert stored is not None
    # the record is there, and the server died before it queued the submission
    stored_batches.remove_batch(farm.bucket, batch.id)
    delete_batch(farm.ledger, farm.bucket, batch.id)
    stored_batches.write_batch(farm.bucket, stored)
    assert waiting.batches.retrieve(batch.id).status == "validating"
    until(lambda: stored_batches.read_outcome(farm.bucket, batch.id) is not None)
    assert farm.ledger.batch(batch.id).total == 1_500
    # a recovery restores a batch that was half submitted, and no queue
    half = stored.model_copy(update={"id": f"batch_{'0' * 24}"})
    stored_batches.write_batch(farm.bucket, half)
    options = SubmitOptions(failure_budget=0, kind=BatchKind.OPENAI, owner=half.owner)
    parts = Submission(farm.ledger, farm.bucket, make_request(farm, half), options, batch=half.id).run()
    assert next(parts) == 1_000
    parts.close()
    assert waiting.batches.retrieve(half.id).status == "validating"
    until(lambda: waiting.batches.retrieve(half.id).status == "in_progress")
    assert farm.ledger.batch(half.id).total == 1_500


def test_a_batch_that_is_cancelled_before_its_submission_is_never_submitted(waiting: openai.OpenAI, farm: Farm) -> None:
    first = create(waiting, [line("a", model="waiting")])
    stored = stored_batches.read_batch(farm.bucket, first.id)
    assert stored is not None
    late = stored.model_copy(update={"id": f"{first.id[:-1]}{'1' if first.id[-1] == '0' else '0'}"})
    stored_batches.write_batch(farm.bucket, late)
    stored_batches.write_cancellation(farm.bucket, late.id, int(time.time()))
    assert waiting.batches.retrieve(late.id).status == "cancelling"
    until(lambda: waiting.batches.retrieve(late.id).status == "cancelled")
    assert late.id not in farm.ledger.batches()


def test_what_has_expired_is_removed(waiting: openai.OpenAI, farm: Farm) -> None:
    hour = {"anchor": "created_at", "seconds": 3_600}
    batch = create(waiting, [line("a", model="waiting")], output_expires_after=hour)
    until(lambda: waiting.batches.retrieve(batch.id).status == "in_progress")
    errors = waiting.batches.cancel(batch.id).error_file_id
    sweep_batches(farm)
    expires_at = waiting.files.retrieve(str(errors)).expires_at
    assert expires_at is not None
    assert 0 <= time.time() + 3_600 - expires_at < 60
    with pytest.raises(openai.BadRequestError, match="made of a batch's results"):
        waiting.files.delete(str(errors))
    stored = stored_batches.read_batch(farm.bucket, batch.id)
    assert stored is not None
    stored_batches.write_batch(farm.bucket, stored.model_copy(update={"output_expires_s": -1}))
    sweep_batches(farm)
    for read in (waiting.batches.retrieve, waiting.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="No batch found with id"):
            read(batch.id)
    assert list(farm.bucket.keys("batches/")) == list(farm.bucket.keys("openai/")) == []

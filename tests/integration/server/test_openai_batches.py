"""OpenAI's Batch API by its own client, over real servers and a real worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Batch
from tests.conftest import until
from tests.support.http_server import RunningServer, RunningWorker

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import BatchState
from latentfarm.farm import Farm

pytestmark = pytest.mark.integration

SMALL = {"width": 64, "height": 64, "num_inference_steps": 1, "guidance_scale": 0}


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
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


def test_lines_become_images_and_invalid_ones_errors(
    client: openai.OpenAI, farm: Farm, rendering: RunningWorker
) -> None:
    lines = [
        line("by url"),
        line("bytes", response_format="b64_json", n=2),
        line("too small", width=8),
        line("another model", model="sdxl"),
        line("an edit", url="/v1/images/edits"),
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
    assert set(errors) == {"too small", "another model", "an edit", f"{batch.id}/6", f"{batch.id}/7"}
    assert "requests.jsonl line 3: width 8" in errors["too small"]["error"]["message"]
    assert farm.ledger.batch(batch.id).kind is BatchKind.OPENAI
    # the files of batches are listed with those that were uploaded
    assert [file.id for file in client.files.list(purpose="batch_output")] == [batch.error_file_id, batch.output_file_id]
    assert client.files.retrieve(str(batch.output_file_id)).purpose == "batch_output"

"""Files and batches of servers that are killed: nothing is half done."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import openai
import pytest
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.support.uploads import count_uploads

from latentfarm.farm import Farm
from latentfarm.server.openai import stored_batches, stored_files
from latentfarm.server.openai.sweep import sweep_files
from latentfarm.storage.multipart_upload import abort_uploads_before

pytestmark = pytest.mark.integration

LINES = 8_000
MIB = 2**20


def requests() -> list[str]:
    body = {"model": "waiting", "prompt": "a red circle", "size": "64x64"}
    return [
        json.dumps({"custom_id": f"{number}", "method": "POST", "url": "/v1/images/generations", "body": body})
        for number in range(LINES)
    ]


@pytest.fixture
def victim(farm: Farm) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, and its port."""
    environment = {**os.environ, **farm.settings.environment(), "LATENTFARM_SERVER_DEFAULT_MODEL": "waiting"}
    command = [sys.executable, "-m", "latentfarm", "serve", "--address", "127.0.0.1:0"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    port = None
    while port is None:
        found = re.search(r"serving http://127.0.0.1:(\d+)", process.stderr.readline())
        port = int(found[1]) if found else None
    yield process, port
    process.kill()
    process.wait(10)
    process.stderr.close()


def test_a_server_that_ends_hands_its_submission_over(farm: Farm, serving: Serving) -> None:
    ending, other = serving(default_model="waiting"), serving(default_model="waiting")
    with openai.OpenAI(base_url=f"{ending.url}/v1", api_key="none", max_retries=0) as client:
        file = client.files.create(file="\n".join(requests()).encode(), purpose="batch")
        # the other one polls the queue each second
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h")
        until(lambda: farm.ledger.redis.hget(f"{{lf}}:batch:{batch.id}", "total") not in {None, b"0"})
    ending.stop()
    until(lambda: farm.ledger.redis.zcard("{lf}:submissions") == 0, timeout_s=15)
    assert other.client.get(f"/v1/batches/{batch.id}").json()["request_counts"]["total"] == LINES


def test_a_killed_server_leaves_no_file_and_another_one_submits_its_batch(
    victim: tuple[subprocess.Popen[str], int], farm: Farm, serving: Serving
) -> None:
    process, port = victim
    head = "POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(9 * MIB)
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
        socket.create_connection(("127.0.0.1", port)) as upload,
    ):
        file = client.files.create(file="\n".join(requests()).encode(), purpose="batch")
        upload.sendall(f"{head}Content-Length: {20 * MIB}\r\n\r\n".encode() + part)
        until(lambda: count_uploads(farm) == 1, timeout_s=20)
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h")
        # in the middle of its submission
        while farm.ledger.redis.hget(f"{{lf}}:batch:{batch.id}", "total") in {None, b"0"}:
            pass
        process.kill()
        process.wait(10)
    stored = farm.ledger.batch(batch.id).total
    assert 0 < stored < LINES

    url = serving(default_model="waiting").url
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [found.id for found in client.files.list()] == [file.id]
        assert client.batches.retrieve(batch.id).status == "validating"
        # the claim of the killed server runs out
        farm.ledger.redis.zadd("{lf}:submissions", {batch.id: 0})
        until(lambda: client.batches.retrieve(batch.id).status == "in_progress", timeout_s=30)
    assert farm.ledger.batch(batch.id).total == LINES
    ids = [result["id"] for result in farm.batch(batch.id).results()]
    assert ids == [f"{number}" for number in range(LINES)]
    until(lambda: not farm.ledger.has_submission(batch.id))
    assert stored_batches.read_outcome(farm.bucket, batch.id) is not None
    # the parts of the upload are no object, and go with the sweep of the next day
    assert abort_uploads_before(farm.bucket, stored_files.PREFIX, datetime.now(UTC) - timedelta(days=1)) == 0
    assert abort_uploads_before(farm.bucket, stored_files.PREFIX, datetime.now(UTC) + timedelta(days=1)) == 1
    sweep_files(farm)
    assert list(farm.bucket.keys("files/")) == [stored_files.content_key(file.id), stored_files.record_key(file.id)]

"""Images that a client waits for, when clients, workers and servers end before they do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.support.http_server import RunningServer, RunningWorker
from tests.support.leasing import expire, make_due

from latentfarm.batch_state import BatchState
from latentfarm.farm import Farm
from latentfarm.settings import Settings
from latentfarm.storage.keys import image_key

pytestmark = pytest.mark.integration

GENERATIONS = "/v1/images/generations"
#: some seconds of a tiny model
LONG = {"prompt": "a red circle", "num_inference_steps": 500, "size": "64x64"}


@contextmanager
def sent(url: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    """Send a request on a socket of its own, which is closed at the end."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    text = json.dumps(body).encode()
    header = f"POST {GENERATIONS} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"{header}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        yield connection


def wait_for_batch(farm: Farm, *, leased: int) -> str:
    """Return the one interactive batch once so many of its jobs are leased."""
    until(lambda: any(farm.ledger.batch(name).leased >= leased for name in farm.ledger.batches(interactive=True)))
    (name,) = farm.ledger.batches(interactive=True)
    return name


def test_a_client_that_hangs_up_cancels_its_images(server: RunningServer, farm: Farm, rendering: RunningWorker) -> None:
    assert rendering
    with sent(server.url, LONG):
        name = wait_for_batch(farm, leased=1)
    until(lambda: farm.ledger.batch(name).state is BatchState.CANCELLED)
    farm.batch(name).delete()
    with sent(server.url, {**LONG, "num_inference_steps": 120, "stream": True, "partial_images": 3}) as connection:
        found = b""
        while b"image_generation.partial_image" not in found:
            found += connection.recv(65_536)
        name = wait_for_batch(farm, leased=1)
    until(lambda: farm.ledger.batch(name).state is BatchState.CANCELLED)
    # the slot is free for the next client
    assert server.client.post(GENERATIONS, json={**LONG, "num_inference_steps": 1}).status_code == 200


def test_images_that_take_too_long_are_cancelled_even_while_they_are_reported(
    serving: Serving, farm: Farm, rendering: RunningWorker
) -> None:
    assert rendering
    body = {**LONG, "stream": True, "partial_images": 1}
    answer = serving(render_timeout_s=1).client.post(GENERATIONS, json=body)
    assert '"code":"timeout"' in answer.text.splitlines()[-2]
    (name,) = farm.ledger.batches(interactive=True)
    assert farm.ledger.batch(name).state is BatchState.CANCELLED


def test_another_worker_renders_the_image_of_one_that_dies(serving: Serving, farm: Farm) -> None:
    server = serving(default_model="idle")
    ledger = farm.ledger
    ledger.heartbeat("idle", "first")
    answers: list[Any] = []
    body = {"prompt": "a red circle", "size": "64x64"}
    client = threading.Thread(target=lambda: answers.append(server.client.post(GENERATIONS, json=body)))
    client.start()
    until(lambda: ledger.pending_jobs().get("idle") == 1)
    assert ledger.lease("idle", "first", 1, lease_s=30)[0].interactive
    assert expire(ledger) == 1
    (name,) = ledger.batches(interactive=True)
    make_due(ledger, name)
    (lease,) = ledger.lease("idle", "second", 1, lease_s=30)
    # the event of the end is lost: the ledger is read too
    hub = server.app.state.context.hub
    for subscription in list(hub._subscriptions):
        hub._loop.call_soon_threadsafe(subscription.close)
    key = image_key(name, 0, lease.epoch)
    farm.bucket.put(key, b"image")
    digest = "6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d"
    receipt = {"key": key, "sha256": digest, "request": {"width": 64, "height": 64}}
    assert ledger.commit([(lease, receipt)]) == ["full"]
    client.join(30)
    assert answers[0].status_code == 200, answers[0].text
    assert b64decode(answers[0].json()["data"][0]["b64_json"]) == b"image"


def test_a_batch_that_is_cancelled_meanwhile_is_answered_at_once(serving: Serving, farm: Farm) -> None:
    server = serving(default_model="idle")
    farm.ledger.heartbeat("idle", "first")

    def cancel() -> None:
        until(lambda: farm.ledger.pending_jobs().get("idle") == 1)
        (name,) = farm.ledger.batches(interactive=True)
        farm.batch(name).cancel()

    other = threading.Thread(target=cancel)
    other.start()
    answer = server.client.post(GENERATIONS, json={"prompt": "a red circle"})
    other.join()
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "cancelled")
    assert answer.headers["x-should-retry"] == "false"


def test_a_request_waits_for_the_first_worker(serving: Serving, farm: Farm) -> None:
    # the worker of other tests reports to the first database
    empty = Farm.open(farm.settings.model_copy(update={"redis_url": f"{farm.settings.redis_url}?db=1"}))
    ledger = empty.ledger
    refused = serving(empty, worker_wait_s=0.2).client.post(GENERATIONS, json={"prompt": "a red circle"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_worker")
    server = serving(empty)
    answers: list[Any] = []
    body = {"prompt": "a red circle", "model": "gpt-image-1"}
    client = threading.Thread(target=lambda: answers.append(server.client.post(GENERATIONS, json=body)))
    client.start()
    until(lambda: server.app.state.running)
    ledger.heartbeat("late", "worker")
    until(lambda: ledger.pending_jobs() == {"late": 1})
    (name,) = ledger.batches(interactive=True)
    empty.batch(name).delete()
    client.join()
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (409, "cancelled")
    ledger.redis.flushdb()


def test_the_images_of_a_server_that_is_killed_are_finished(
    settings: Settings, farm: Farm, rendering: RunningWorker, tmp_path: Path
) -> None:
    assert rendering
    command = [sys.executable, "-m", "latentfarm", "serve", "--address", "127.0.0.1:0"]
    environment = {**os.environ, **settings.environment(), "LATENTFARM_LOG_FORMAT": "text"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            url = process.stderr.readline().split()[1].rstrip(";")
            with sent(url, {**LONG, "num_inference_steps": 20}) as connection:
                name = wait_for_batch(farm, leased=1)
                process.kill()
                assert connection.recv(1) == b""
        finally:
            process.kill()
    until(lambda: farm.ledger.batch(name).state is BatchState.COMPLETE, timeout_s=60)
    (result,) = farm.batch(name).results()
    assert farm.bucket.exists(result["key"])

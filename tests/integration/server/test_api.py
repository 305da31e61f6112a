"""The farm's own API: submissions, progress, jobs, images and decisions."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
from PIL import Image
from tests.conftest import until
from tests.support.http_server import WORKER, RunningServer

from latentfarm.batch_kind import BatchKind
from latentfarm.farm import Farm
from latentfarm.ledger import LiveReport
from latentfarm.storage.keys import preview_key
from latentfarm.submission.request import SubmitOptions

pytestmark = pytest.mark.integration


@pytest.mark.usefixtures("rendering")
def test_a_batch_from_its_submission_to_its_images_and_its_deletion(server: RunningServer) -> None:
    client = server.client
    rows = ["a red circle", {"prompt": "a blue star", "num_inference_steps": 2, "seed": 7, "id": "star"}]
    body = {"name": "cats", "rows": rows, "defaults": {"num_inference_steps": 1, "width": 64, "height": 64}}
    submitted = client.post("/api/batches", json=body)
    assert (submitted.status_code, submitted.json()["total"]) == (201, 2), submitted.text
    until(lambda: client.get("/api/batches/cats").json()["state"] == "complete")
    status = client.get("/api/batches/cats").json()
    assert (status["done"], status["warnings"], status["eta_s"]) == (2, [], 0.0)
    assert [each["batch"] for each in client.get("/api/batches?state=complete").json()["batches"]] == ["cats"]
    assert client.get("/api/batches?state=open").json() == {"batches": [], "next": None}

    page = client.get("/api/batches/cats/jobs?limit=1").json()
    assert (page["jobs"][0]["request"]["prompt"], page["next"]) == ("a red circle", 1)
    job = client.get("/api/batches/cats/jobs/1").json()
    assert (job["id"], job["state"], job["request"]["seed"]) == ("star", "done", 7)
    del job["parameters"]
    assert client.get("/api/batches/cats/jobs?start=1").json() == {"jobs": [job], "next": None}
    states = client.get("/api/batches/cats/states")
    assert (states.content, states.headers["x-total"]) == (b"\2\2", "2")

    image = client.get(job["image"])
    assert image.headers["content-type"] == "image/png"
    assert "immutable" in image.headers["cache-control"]
    assert Image.open(io.BytesIO(image.content)).size == (64, 64)
    assert client.get("/api/batches/cats/images/1").content == image.content
    redirected = client.get("/api/batches/cats/images/1?redirect=1", follow_redirects=False)
    assert (redirected.status_code, "X-Amz-Signature" in redirected.headers["location"]) == (307, True)
    thumbnail = client.get(job["thumbnail"])
    assert Image.open(io.BytesIO(thumbnail.content)).format == "WEBP"
    again = client.get(job["thumbnail"], headers={"If-None-Match": thumbnail.headers["etag"]})
    assert again.status_code == 304

    assert client.delete("/api/batches/cats").json()["state"] == "deleting"
    until(lambda: client.get("/api/batches/cats").status_code == 404)


def read_events(
    server: RunningServer,
    query: str,
    count: int,
    *,
    after: str = "",
    on_ready: Callable[[], object] = lambda: None,
) -> list[dict[str, str]]:
    """Return the first events of a stream. ``on_ready`` is called once the stream has begun."""
    found: list[dict[str, str]] = []
    with server.client.stream("GET", f"/api/events?{query}", headers={"Last-Event-ID": after}) as stream:
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if name in {"id", "event"} and (not found or "data" in found[-1]):
                found.append({})
            if name in {"id", "event", "data"}:
                found[-1][name] = value
            if name == "data" and WORKER in value:
                # the worker of other tests begins when it finds the farm emptied
                found.pop()
            elif name == "data" and found[-1]["event"] == "ready":
                on_ready()
            if len(found) == count and "data" in found[-1]:
                return found
    raise AssertionError(found)


def test_events_are_resumed_where_a_client_was_cut_off(server: RunningServer, farm: Farm) -> None:
    client = server.client
    client.post("/api/batches", json={"name": "events", "rows": ["a cat"], "model": "unserved"})
    ready, progress = read_events(server, "batch=events", 2)
    assert (ready["event"], progress["event"]) == ("ready", "progress")
    assert json.loads(progress["data"])["pending"] == 1
    client.post("/api/batches/events/pause", json={"reason": "lunch"})
    client.post("/api/batches/events/priority", json={"priority": 7})
    events = read_events(server, "batch=events", 4, after=ready["id"])
    assert [each["event"] for each in events] == ["change", "change", "ready", "progress"]
    assert [json.loads(each["data"])["event"] for each in events[:2]] == ["paused", "priority"]
    last = json.loads(events[-1]["data"])
    assert (last["paused"], last["priority"]) == ("by its user: lunch", 7)
    assert events[2]["id"] == farm.ledger.last_event_id()

    # without a batch: all that are active, but no interactive one, and workers
    def change() -> None:
        options = SubmitOptions(kind=BatchKind.INTERACTIVE)
        farm.submit(["a cat"], batch="interactive-events", model="unserved", options=options)
        farm.ledger.heartbeat("unserved", "worker-x")
        client.post("/api/batches/events/resume")

    events = read_events(server, "progress=0", 3, on_ready=change)
    changes = [json.loads(each["data"]) for each in events[1:]]
    assert [(each["event"], each["batch"], each["worker"]) for each in changes] == [
        ("worker_started", "", "worker-x"),
        ("resumed", "events", ""),
    ]
    [_, progress] = read_events(server, "", 2)
    assert [each["batch"] for each in json.loads(progress["data"])] == ["events"]
    for wrong, status in (("batch=none", 404), ("after=x", 400), ("live=2", 400)):
        assert client.get(f"/api/events?{wrong}").status_code == status
    assert client.get("/api/events", headers={"Last-Event-ID": "x"}).status_code == 400


def test_steps_and_previews_are_sent_on_request(server: RunningServer, farm: Farm) -> None:
    farm.submit(["a cat"], batch="live", model="unserved")
    key = preview_key("live", 0, 5, 1)
    farm.bucket.put(key, b"bytes")
    reports = [LiveReport("live/0", 3, 8), LiveReport("live/0", 4, 8, key, 1)]
    events = read_events(server, "batch=live&live=1&progress=0", 3, on_ready=lambda: farm.ledger.publish_live(reports))
    steps, preview = (json.loads(each["data"]) for each in events[1:])
    assert (steps["step"], steps["steps"], steps["preview"]) == (3, 8, None)
    answer = server.client.get(preview["preview"])
    assert (answer.content, answer.headers["content-type"]) == (b"bytes", "image/png")

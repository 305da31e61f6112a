"""The farm's own API: submissions, progress, jobs, images and decisions."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from tests.conftest import until
from tests.support.http_server import RunningServer

from latentfarm.farm import Farm

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


def test_events_are_resumed_where_a_client_was_cut_off(server: RunningServer, farm: Farm) -> None:
    client = server.client
    client.post("/api/batches", json={"name": "events", "rows": ["a cat"], "model": "unserved"})

    def read(count: int, **headers: str) -> list[dict[str, str]]:
        """Return the first events of a stream."""
        found: list[dict[str, str]] = []
        with client.stream("GET", "/api/events?batch=events", headers=headers) as stream:
            for line in stream.iter_lines():
                name, _, value = line.partition(": ")
                if name in {"id", "event"} and (not found or "data" in found[-1]):
                    found.append({})
                if name in {"id", "event", "data"}:
                    found[-1][name] = value
                if len(found) == count and "data" in found[-1]:
                    return found
        raise AssertionError(found)

    ready, progress = read(2)
    assert (ready["event"], progress["event"]) == ("ready", "progress")
    assert json.loads(progress["data"])["pending"] == 1
    client.post("/api/batches/events/pause", json={"reason": "lunch"})
    client.post("/api/batches/events/priority", json={"priority": 7})
    events = read(4, **{"Last-Event-ID": ready["id"]})
    assert [each["event"] for each in events] == ["change", "change", "ready", "progress"]
    assert [json.loads(each["data"])["event"] for each in events[:2]] == ["paused", "priority"]
    last = json.loads(events[-1]["data"])
    assert (last["paused"], last["priority"]) == ("by its user: lunch", 7)
    assert events[2]["id"] == farm.ledger.last_event_id()

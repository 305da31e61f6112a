"""Drafts by the farm's own API: previews, prices, finishing and discarding, and what other protocols report."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.support.drafts import STOPPED, WHOLE, drafted_batch, drafts_keys, work
from tests.support.event_stream import following, next_of
from tests.support.http_server import RunningServer

from latentfarm.batch_drafts import DraftSelection
from latentfarm.batch_state import BatchState
from latentfarm.farm import Farm
from latentfarm.job_state import JobState

pytestmark = pytest.mark.integration

LEFT = WHOLE - STOPPED
CATS = [f"a cat {index}" for index in range(6)]


def ok(answer: httpx2.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def indices(server: RunningServer, path: str) -> list[int]:
    return [job["index"] for job in ok(server.client.get(path))["jobs"]]


def test_picked_drafts_are_finished_and_the_rest_is_discarded(
    server: RunningServer, farm: Farm, caplog: pytest.LogCaptureFixture
) -> None:
    client, path = server.client, "/api/batches/chosen"
    with following(client, "progress=0") as events:
        next_of(events, "ready")
        drafted_batch(farm, CATS, "chosen")
        until(lambda: next_of(events, "change")["event"] == "drafted")
    assert {name: ok(client.get(path))[name] for name in ("state", "drafted", "done")} == {
        "state": "drafted",
        "drafted": 6,
        "done": 0,
    }
    assert [each["batch"] for each in ok(client.get("/api/batches?state=drafted"))["batches"]] == ["chosen"]
    assert ok(client.get("/api/batches?state=paused"))["batches"] == []
    assert set(client.get(f"{path}/states").content) == {JobState.DRAFTED}
    body = {"picks": [*({"index": each, "pick": "picked"} for each in (1, 4)), {"index": 2, "pick": "rejected"}]}
    counts = {"picked": 2, "rejected": 1, "rated": 0, "picked_drafts": 2, "rejected_drafts": 1}
    assert ok(client.post(f"{path}/picks", json=body)) == counts

    price = ok(client.get(f"{path}/drafts/price?pick=picked"))
    assert (price["drafts"], price["selected"], price["indices"], price["changed"]) == (6, 2, [1, 4], 0)
    evaluations = {name: work["evaluations"] for name, work in price["price"].items()}
    assert evaluations == {"made": 6 * STOPPED, "finish": 2 * LEFT, "saved": 4 * LEFT}
    caplog.set_level("INFO", "latentfarm.audit")
    for changed in (2, 0):
        assert ok(client.post(f"{path}/finish", json={"pick": "picked"}))["changed"] == changed
    assert ok(client.get(path))["state"] == "open"
    assert indices(server, f"{path}/jobs?state=drafted") == [0, 2, 3, 5]
    work(farm)
    # a pick is of the finished image as well
    done = ok(client.get(f"{path}/jobs?state=done&pick=picked"))["jobs"]
    assert [job["index"] for job in done] == [1, 4]
    assert client.get(done[0]["image"]).content == client.get(f"{path}/images/1").content
    assert ok(client.get(f"{path}/picks"))["picked_drafts"] == 0

    assert ok(client.post(f"{path}/discard", json={"pick": "rejected"}))["changed"] == 1
    for changed in (3, 0):
        assert ok(client.post(f"{path}/discard", json={"all": True}))["changed"] == changed
    found = ok(client.get(path))
    assert (found["state"], found["done"], found["cancelled"], found["drafted"]) == ("complete", 2, 4, 0)
    assert not [key for key in drafts_keys(farm, "chosen") if "00000001" not in key and "00000004" not in key]
    lines = [record.getMessage() for record in caplog.records if record.name == "latentfarm.audit"]
    assert [line.partition("' batch=chosen ")[0].rpartition("/")[2] for line in lines] == ["finish"] * 2 + [
        "discard"
    ] * 3


def test_the_best_distinct_drafts_are_selected_by_score(server: RunningServer, farm: Farm) -> None:
    drafted_batch(farm, CATS, "best")
    path = "/api/batches/best"
    scores = {job["index"]: job["scores"]["sharpness"] for job in ok(server.client.get(f"{path}/jobs"))["jobs"]}
    best = sorted(sorted(scores, key=lambda index: -scores[index])[:3])
    assert ok(server.client.get(f"{path}/drafts/price?top=0.5&by=sharpness"))["indices"] == best
    # all hashes are within 64 bits of the best one's
    alike = ok(server.client.get(f"{path}/drafts/price?by=sharpness&distinct=64"))
    assert alike["selected"] == 1
    found = ok(server.client.post(f"{path}/finish", json={"top": 3, "by": "scores.sharpness", "distinct": 0}))
    assert (found["changed"], found["indices"]) == (3, best)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "write which drafts, as indices, pick, top or distinct; or all: true"),
        ({"all": True, "pick": "picked"}, 400, "all is true beside a criterion; leave out one of them"),
        ({"indices": [0, 5]}, 404, "5"),
        ({"indices": [0, 4]}, 409, "job wrong/4 is done, no draft; leave it out"),
        ({"pick": "kept"}, 400, "pick "),
        ({"top": 1.5, "by": "sharpness"}, 400, "top 1.5: write a share below 1"),
        ({"by": "sharpness"}, 400, "by 'sharpness' orders drafts"),
        ({"top": 1, "by": "beauty"}, 400, "no draft of wrong has the number 'beauty'; write "),
        ({"distinct": 65}, 400, "distinct "),
        ({"picked": True}, 400, "picked is not known"),
    ],
)
def test_a_selection_that_means_no_drafts_is_refused_and_nothing_is_done(
    server: RunningServer, farm: Farm, body: dict[str, Any], status: int, message: str
) -> None:
    batch = drafted_batch(farm, CATS[:5], "wrong")
    batch.finish(DraftSelection(indices=(4,)))
    work(farm)
    before = farm.ledger.state_bytes("wrong", 0, 5)
    answer = server.client.post("/api/batches/wrong/discard", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, message in error["message"]) == (status, True), error
    assert farm.ledger.state_bytes("wrong", 0, 5) == before == bytes([*[JobState.DRAFTED] * 4, JobState.DONE])
    if "top" in body:
        # a price is refused as well
        assert server.client.get("/api/batches/wrong/drafts/price", params=body).json()["error"] == error


def test_a_plan_reports_what_drafts_save(server: RunningServer) -> None:
    body = {"rows": CATS, "defaults": {"draft": STOPPED, "num_inference_steps": WHOLE}}
    found = ok(server.client.post("/api/plan?keep=0.5", json=body))
    steps = {name: found["drafts"][name]["steps"] for name in ("made", "finish", "saved")}
    assert steps == {"made": 6 * STOPPED, "finish": 3 * LEFT, "saved": 3 * LEFT}
    assert found["steps"] == 6 * WHOLE
    assert server.client.post("/api/plan?keep=2", json=body).json()["error"]["param"] == "keep"
    assert ok(server.client.post("/api/plan", json={"rows": CATS}))["drafts"] is None


def test_the_preview_of_a_draft_is_no_image(server: RunningServer, farm: Farm) -> None:
    drafted_batch(farm, CATS[:2], "seen")
    client, path = server.client, "/api/batches/seen"
    job = ok(client.get(f"{path}/jobs/1"))
    assert job["image"] == f"{path}/images/1?epoch={job['epoch']}&format=png&draft=1"
    assert (job["draft"]["evaluations"], job["draft"]["of"], job["intermediates"]) == (STOPPED, WHOLE, None)
    preview = client.get(job["image"])
    assert preview.content == client.get(f"{path}/images/1?draft=1").content == farm.bucket.get(job["key"])
    assert "immutable" in preview.headers["cache-control"]
    thumbnail = client.get(job["thumbnail"])
    assert Image.open(io.BytesIO(thumbnail.content)).format == "WEBP"
    refused = client.get(f"{path}/images/1")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_image")
    assert "write draft=1 for its preview" in refused.json()["error"]["message"]
    assert client.get(f"{path}/intermediates/1").status_code == 404
    farm.batch("seen").finish(DraftSelection(indices=(1,)))
    work(farm)
    assert client.get(f"{path}/images/1").status_code == 200
    assert "leave out draft" in client.get(f"{path}/images/1?draft=1").json()["error"]["message"]


def test_who_waits_for_an_image_gets_no_draft_and_a_batch_of_drafts_is_in_progress(
    serving: Serving, farm: Farm
) -> None:
    url = serving(default_model="mini").url
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="draft: who waits for an image gets a whole one"):
            client.images.generate(prompt="a cat", model="mini", extra_body={"draft": 0.3})
        body = {"model": "mini", "prompt": "a cat", "draft": STOPPED, "num_inference_steps": WHOLE}
        line = {"custom_id": "one", "method": "POST", "url": "/v1/images/generations", "body": body}
        file = client.files.create(file=("requests.jsonl", json.dumps(line).encode()), purpose="batch")
        made = client.batches.create(input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h")
        until(lambda: work(farm) == 1)
        assert farm.batch(made.id).status().state is BatchState.DRAFTED
        found = client.batches.retrieve(made.id)
        assert (found.status, found.output_file_id, found.error_file_id) == ("in_progress", None, None)
        farm.batch(made.id).finish(DraftSelection())
        work(farm)
        found = client.batches.retrieve(made.id)
        assert (found.status, found.request_counts and found.request_counts.completed) == ("completed", 1)

"""Lists, decisions, pages of jobs and failures by the farm's own API."""

from __future__ import annotations

import json
from itertools import count

import pytest
from tests.conftest import until
from tests.support.event_stream import following, next_of
from tests.support.http_server import RunningServer

from latentfarm.batch_kind import BatchKind
from latentfarm.farm import Farm
from latentfarm.job import default_seed
from latentfarm.job_state import JobState
from latentfarm.server.api import jobs
from latentfarm.storage.results import flush_batch
from latentfarm.submission.request import SubmitOptions

pytestmark = pytest.mark.integration

# each test has a name of its own for its batch: the server keeps answers for half a second
#: the worker that other tests have started does not serve it
MODEL = "unserved"


def submit(farm: Farm, name: str, rows: int = 1, **options: object) -> None:
    farm.submit([f"a cat {each}" for each in range(rows)], batch=name, model=MODEL, options=SubmitOptions(**options))  # type: ignore[arg-type]


def test_batches_are_listed_by_page_and_filter(server: RunningServer, farm: Farm) -> None:
    for name in ("one", "two", "three"):
        submit(farm, name, owner="key" if name == "two" else "")
    submit(farm, "interactive-1", kind=BatchKind.INTERACTIVE)
    submit(farm, "four", kind=BatchKind.OPENAI)
    farm.batch("three").pause()

    def names(query: str) -> list[str]:
        return [each["batch"] for each in server.client.get(f"/api/batches?{query}").json()["batches"]]

    assert names("") == ["four", "three", "two", "one"]
    assert names("kind=interactive") == ["interactive-1"]
    assert names("kind=openai") == ["four"]
    assert names("owner=key") == ["two"]
    assert names("state=paused&state=complete") == ["three"]
    assert names("model=mini") == []
    page = server.client.get("/api/batches?limit=2").json()
    assert page["next"].endswith(":three")
    # the batch of the cursor is deleted meanwhile
    farm.batch("three").delete()
    rest = server.client.get("/api/batches", params={"limit": 2, "cursor": page["next"]}).json()
    assert [each["batch"] for each in rest["batches"]] == ["two", "one"]
    last = server.client.get("/api/batches", params={"cursor": rest["next"]}).json()
    assert last == {"batches": [], "next": None}
    assert server.client.get("/api/batches?cursor=x").status_code == 400


def test_a_client_that_learns_of_a_change_reads_no_answer_from_before_it(server: RunningServer, farm: Farm) -> None:
    def states() -> dict[str, str]:
        return {each["batch"]: each["state"] for each in server.client.get("/api/batches").json()["batches"]}

    with following(server.client, "progress=0") as events:
        next_of(events, "ready")
        assert states() == {}
        submit(farm, "learned")
        # each answer is kept for half a second
        until(lambda: next_of(events, "change")["event"] == "open")
        assert states() == {"learned": "open"}
        farm.batch("learned").pause()
        assert next_of(events, "change")["event"] == "paused"
        assert states() == {"learned": "paused"}


def test_decisions_are_seen_by_the_next_poll_and_conflicts_are_409(server: RunningServer, farm: Farm) -> None:
    client, path = server.client, "/api/batches/cows"
    submit(farm, "cows", 2)
    assert client.get(path).json()["state"] == "open"
    assert client.post(f"{path}/pause", json={"reason": "lunch"}).json()["paused"] == "by its user: lunch"
    # at once, though answers are kept for half a second
    assert client.get(path).json()["state"] == "paused"
    assert client.post(f"{path}/resume").json()["state"] == "open"
    assert client.post(f"{path}/priority", json={"priority": 9}).json()["priority"] == 9
    [job, _] = farm.ledger.lease(MODEL, "worker-x", 2, lease_s=60)
    farm.ledger.fail(job, {"code": "nan", "message": "not a number"})
    assert client.post(f"{path}/retry", json={"code": "other"}).json() == {"retried": 0}
    assert client.post(f"{path}/retry", json={"code": "nan"}).json() == {"retried": 1}
    assert client.post(f"{path}/retry", json={"code": "invalid_row"}).status_code == 400
    assert client.post(f"{path}/cancel").json()["state"] == "cancelled"
    assert client.get(f"{path}/states").content == bytes([JobState.CANCELLED] * 2)
    for verb in ("pause", "resume"):
        refused = client.post(f"{path}/{verb}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    for method, other in (("GET", "none"), ("POST", "none/pause"), ("DELETE", "none"), ("GET", "A%2F.")):
        assert client.request(method, f"/api/batches/{other}").status_code == 404

    farm.ledger.heartbeat(MODEL, "worker-x")
    workers = client.get(f"/api/workers?model={MODEL}").json()["workers"]
    assert [each["worker"] for each in workers] == ["worker-x"]
    [model] = [each for each in client.get("/api/models").json()["models"] if each["model"] == MODEL]
    assert model["workers"] == 1
    assert client.post("/api/workers/worker-x/drain").status_code == 202
    assert farm.ledger.heartbeat(MODEL, "worker-x").drain
    assert client.post("/api/workers/worker-y/drain").status_code == 404


def test_pages_of_jobs_by_state_and_code_read_a_few_parts_each(
    server: RunningServer, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_MAX_PARTS", 2)
    submit(farm, "pages", 4_000)
    numbers = count()
    for _ in range(4):
        leases = farm.ledger.lease(MODEL, "worker-x", 1_000, lease_s=60)
        # one job of each part fails, and the first part is flushed
        farm.ledger.commit([(each, {"key": "k", "sha256": ""}) for each in leases[1:]])
        farm.ledger.fail(leases[0], {"code": f"code-{next(numbers) % 2}", "message": "why"})
    flush_batch(farm.ledger, farm.bucket, "pages")

    def pages(query: str) -> list[list[int]]:
        """Return the indices of each page."""
        found, start = [], 0
        while True:
            page = server.client.get(f"/api/batches/pages/jobs?{query}&start={start}").json()
            found.append([job["index"] for job in page["jobs"]])
            if page["next"] is None:
                return found
            start = page["next"]

    assert pages("state=failed") == [[0, 1_000], [2_000, 3_000]]
    assert pages("state=failed&limit=1") == [[0], [1_000], [2_000], [3_000]]
    assert pages("code=code-1") == [[1_000], [3_000]]
    assert pages("code=code-1&state=done") == [[]]
    assert pages("state=pending") == [[]]
    # by what the rows have: `submit` writes their number into the prompts
    assert pages("prompt=CAT 19&limit=60") == [[19, *range(190, 200), *range(1_900, 1_949)], [*range(1_949, 2_000)], []]
    assert pages("prompt=cat 19&code=code-0") == [[], []]
    assert pages("prompt=cat 2000&code=code-0") == [[], [2_000]]
    seed = default_seed("pages", 2_345)
    assert pages(f"seed={seed}") == [[], [2_345]]
    assert pages(f"seed={seed}&prompt=cat 2345&state=done") == [[], [2_345]]
    assert pages(f"seed={seed}&prompt=cat 17") == [[], []]
    assert len(server.client.get("/api/batches/pages/jobs?limit=500").json()["jobs"]) == 500
    assert server.client.get("/api/batches/pages/jobs?limit=501").status_code == 400
    lines = server.client.get("/api/batches/pages/results?state=failed").text.splitlines()
    assert [json.loads(line)["error"]["code"] for line in lines] == ["code-0", "code-1"] * 2
    assert server.client.get("/api/batches/none/results").status_code == 404
    failures = server.client.get("/api/batches/pages/failures").json()["failures"]
    assert failures == [
        {"code": "code-0", "count": 2, "indices": [0], "message": "why"},
        {"code": "code-1", "count": 2, "indices": [1_000], "message": "why"},
    ]
    states = server.client.get("/api/batches/pages/states?start=999&stop=1002")
    assert (states.content, states.headers["x-total"]) == (b"\2\3\2", "4000")
    unchanged = {"If-None-Match": states.headers["etag"]}
    assert server.client.get("/api/batches/pages/states?start=999&stop=1002", headers=unchanged).status_code == 304
    assert server.client.get("/api/batches/pages/states?start=9999").content == b""
    assert server.client.get("/api/batches/pages/images/0").json()["error"]["code"] == "no_image"
    assert server.client.get("/api/batches/pages/images/1").json()["error"]["code"] == "no_image"
    assert server.client.get("/api/batches/pages/thumbnails/4000").status_code == 404
    assert server.client.delete("/api/batches/pages").status_code == 202
    until(lambda: server.client.get("/api/batches/pages").status_code == 404)

"""Picks by the farm's own API: decisions, filters, two servers at once, and the preference set."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pyarrow import parquet
from tests.integration.server.conftest import Serving
from tests.support.done_jobs import done_batch, finish
from tests.support.http_server import RunningServer

from latentfarm.farm import Farm
from latentfarm.server.api import jobs
from latentfarm.storage import picks
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import picks_prefix
from latentfarm.storage.pick_state import Pick, PickChange, parse_lines
from latentfarm.storage.picks import PickJournal

pytestmark = pytest.mark.integration

NO_DRAFTS = {"picked_drafts": 0, "rejected_drafts": 0}


def decide(server: RunningServer, name: str, *wanted: dict[str, Any]) -> Any:
    answer = server.client.post(f"/api/batches/{name}/picks", json={"picks": wanted})
    assert answer.status_code == 200, answer.text
    return answer.json()


def indices(server: RunningServer, path: str) -> list[int]:
    return [job["index"] for job in server.client.get(path).json()["jobs"]]


def test_decisions_are_seen_at_once_in_lists_jobs_and_results(server: RunningServer, farm: Farm) -> None:
    batch = done_batch(farm, ["a", "b", "c", "d"], "seen")
    client, path = server.client, "/api/batches/seen"
    epoch = next(batch.results())["epoch"]
    assert client.get(f"{path}/picks").json() == {"picks": [], "picked": 0, "rejected": 0, "rated": 0, **NO_DRAFTS}
    assert decide(server, "seen", {"index": 0, "pick": "picked", "epoch": epoch}, {"index": 2, "rating": 4}) == {
        "picked": 1,
        "rejected": 0,
        "rated": 1,
        **NO_DRAFTS,
    }
    # a field that is left out stays, and null removes its value
    decide(server, "seen", {"index": 0, "rating": 2}, {"index": 1, "pick": "rejected", "rating": 1})
    assert decide(server, "seen", {"index": 1, "rating": None}) == {"picked": 1, "rejected": 1, "rated": 2, **NO_DRAFTS}
    found = client.get(f"{path}/picks").json()["picks"]
    assert [(each["index"], each["pick"], each["rating"]) for each in found] == [
        (0, "picked", 2),
        (1, "rejected", None),
        (2, None, 4),
    ]
    assert found[0]["epoch"] == epoch
    job = client.get(f"{path}/jobs/0").json()
    assert (job["pick"], job["rating"]) == ("picked", 2)
    assert {"pick", "rating"} & client.get(f"{path}/jobs/3").json().keys() == set()
    listed = client.get(f"{path}/jobs").json()["jobs"]
    assert [(each.get("pick"), each.get("rating")) for each in listed] == [
        ("picked", 2),
        ("rejected", None),
        (None, 4),
        (None, None),
    ]
    lines = [json.loads(line) for line in client.get(f"{path}/results?pick=picked&pick=none").text.splitlines()]
    assert [(line["index"], line.get("pick")) for line in lines] == [(0, "picked"), (2, None), (3, None)]
    # the command and other servers see the same
    assert [each.index for each in farm.batch("seen").picks()] == [0, 1, 2]


def test_jobs_are_filtered_by_pick_and_rating_before_their_parts_are_read(
    server: RunningServer, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_WINDOW_JOBS", 1_000)
    total = 3_010
    batch = done_batch(farm, [f"a cat {index}" for index in range(total)], "filtered", fail=[5], stored=False)
    batch.pick([7, 1_500, 3_005], "picked")
    batch.pick([1_501], "rejected", rating=2)
    batch.pick([1_500, 3_005], rating=5)
    read: list[str] = []
    get = Bucket.get
    monkeypatch.setattr(Bucket, "get", lambda self, key: read.append(key) or get(self, key))  # type: ignore[func-returns-value]
    path = "/api/batches/filtered/jobs"
    assert indices(server, f"{path}?pick=picked&start=8") == [1_500, 3_005]
    parts = {key for key in read if "/results/" in key or "/manifest/" in key}
    assert len(parts) == 4
    assert indices(server, f"{path}?pick=picked&pick=rejected") == [7, 1_500, 1_501, 3_005]
    assert indices(server, f"{path}?rating=3") == [1_500, 3_005]
    assert indices(server, f"{path}?rating=1&pick=rejected") == [1_501]
    assert indices(server, f"{path}?rating=1&pick=none") == []
    assert indices(server, f"{path}?pick=picked&state=failed") == []
    assert indices(server, f"{path}?pick=none&limit=3&start=6") == [6, 8, 9]
    assert indices(server, f"{path}?pick=none&state=failed") == [5]
    page = server.client.get(f"{path}?pick=picked&limit=1").json()
    assert ([job["index"] for job in page["jobs"]], page["next"]) == ([7], 1_500)
    assert indices(server, f"{path}?pick=picked&prompt=CAT%201500") == [1_500]


def test_a_pick_of_an_earlier_image_counts_in_no_filter(server: RunningServer, farm: Farm) -> None:
    batch = done_batch(farm, ["a", "b"], "earlier")
    PickJournal(farm.bucket, "earlier").write(farm.ledger, [PickChange(0, 12, Pick.PICKED, 5)])
    batch.pick([1], "picked", rating=5)
    assert indices(server, "/api/batches/earlier/jobs?pick=picked") == [1]
    assert indices(server, "/api/batches/earlier/jobs?rating=5") == [1]
    assert "pick" not in server.client.get("/api/batches/earlier/jobs/0").json()


@pytest.mark.parametrize(
    ("wanted", "status", "message"),
    [
        (
            [{"index": 1, "pick": "picked"}],
            409,
            "job wrong/1 is failed; only the image of a done job, or a draft, can be picked",
        ),
        ([{"index": 3, "pick": "picked"}], 404, "job wrong/3 does not exist; the batch has the jobs 0 to 2"),
        ([{"index": 0, "epoch": 7}], 409, "job wrong/0 has another image now, of epoch "),
        ([{"index": 0}, {"index": 0}], 400, "job wrong/0 is named twice"),
        ([{"index": 0, "pick": "kept"}], 400, "picks.0.pick "),
        ([{"index": 0, "rating": 0}], 400, "picks.0.rating "),
        ([{"index": 0, "rating": "5"}], 400, "picks.0.rating "),
        ([{"index": -1}], 400, "picks.0.index "),
        ([{"index": 0, "stars": 5}], 400, "picks.0.stars is not known"),
        ([{"index": index} for index in range(1_001)], 400, "picks "),
    ],
)
def test_a_decision_that_cannot_be_made_is_refused_with_its_place_and_nothing_is_stored(
    server: RunningServer, farm: Farm, wanted: list[dict[str, Any]], status: int, message: str
) -> None:
    done_batch(farm, ["a", "b", "c"], "wrong", fail=[1])
    good = {"index": 2, "pick": "picked"}
    answer = server.client.post("/api/batches/wrong/picks", json={"picks": [good, *wanted]})
    error = answer.json()["error"]
    assert (answer.status_code, error["message"].startswith(message.replace("picks.0", "picks.1"))) == (status, True), (
        error
    )
    assert list(farm.bucket.keys(picks_prefix("wrong"))) == []


def test_unknown_batches_and_wrong_queries_are_refused(server: RunningServer, farm: Farm) -> None:
    done_batch(farm, ["a"], "known")
    client = server.client
    assert client.get("/api/batches/none/picks").status_code == 404
    assert client.post("/api/batches/none/picks", json={"picks": []}).status_code == 404
    assert client.get("/api/batches/none/preferences").status_code == 404
    assert client.get("/api/batches/known/jobs?pick=kept").status_code == 400
    assert client.get("/api/batches/known/jobs?rating=6").status_code == 400
    assert client.get("/api/batches/known/results?pick=kept").status_code == 400
    assert client.get("/api/batches/known/preferences?images=files").status_code == 400
    refused = client.get("/api/batches/known/preferences?form=pickapic").json()["error"]["message"]
    assert "has the bytes of images" in refused


def test_of_two_servers_at_once_none_loses_a_decision(
    serving: Serving, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picks, "_MAX_OBJECTS", 4)
    count = 24
    done_batch(farm, [f"a {index}" for index in range(count)], "both")
    servers = [serving(), serving()]

    def work(job: int) -> None:
        decide(servers[job % 2], "both", {"index": job % count, "pick": "picked"})
        decide(servers[job % 2], "both", {"index": job % count, "rating": job % 5 + 1})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(count)))
    expected = [(index, "picked", index % 5 + 1) for index in range(count)]
    for server in (*servers, serving()):
        # one who decides reads first what others have decided
        assert decide(server, "both") == {"picked": count, "rejected": 0, "rated": count, **NO_DRAFTS}
        found = server.client.get("/api/batches/both/picks").json()["picks"]
        assert [(each["index"], each["pick"], each["rating"]) for each in found] == expected


def test_a_page_of_jobs_lists_picks_once_and_soon_not_at_all(
    serving: Serving, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    done_batch(farm, [f"a {index}" for index in range(2_100)], "listed", stored=False)
    listed: list[str] = []
    keys = Bucket.keys

    def count(self: Bucket, prefix: str, **options: Any) -> Any:
        listed.append(prefix)
        return keys(self, prefix, **options)

    monkeypatch.setattr(Bucket, "keys", count)
    monkeypatch.setattr("latentfarm.server.api.pick_journals._FRESH_S", 60.0)
    server = serving()
    for _ in range(3):
        assert len(indices(server, "/api/batches/listed/jobs?start=900&limit=300")) == 300
    assert listed == [picks_prefix("listed")]
    decide(server, "listed", {"index": 900, "pick": "picked"})
    assert indices(server, "/api/batches/listed/jobs?pick=picked") == [900]
    assert listed == [picks_prefix("listed")] * 2


def test_a_batch_of_the_name_of_a_deleted_one_has_no_picks(server: RunningServer, farm: Farm) -> None:
    batch = done_batch(farm, ["a"], "again")
    decide(server, "again", {"index": 0, "pick": "picked"})
    batch.delete()
    done_batch(farm, ["a"], "again")
    assert "pick" not in server.client.get("/api/batches/again/jobs/0").json()
    assert decide(server, "again", {"index": 0, "rating": 3}) == {"picked": 0, "rejected": 0, "rated": 1, **NO_DRAFTS}


def test_the_preference_set_is_streamed_as_parquet(
    server: RunningServer, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = done_batch(farm, ["a", "a", "b", "b"], "pairs")
    batch.pick([0, 2], "picked")
    batch.pick([1, 3], "rejected")
    path = "/api/batches/pairs/preferences"
    answer = server.client.get(path)
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    assert answer.headers["content-disposition"] == 'attachment; filename="pairs-preferences.parquet"'
    rows = parquet.read_table(io.BytesIO(answer.content)).to_pylist()
    assert [(row["prompt"], row["chosen_index"], row["rejected_index"]) for row in rows] == [("a", 0, 1), ("b", 2, 3)]
    images = parquet.read_table(io.BytesIO(server.client.get(f"{path}?images=bytes").content)).to_pylist()
    keys = [line["key"] for line in batch.results()]
    assert images[0]["chosen"] == {"bytes": farm.bucket.get(keys[0]), "path": keys[0]}
    # an image is gone: there is no half file
    farm.bucket.delete([keys[0]])
    assert server.client.get(f"{path}?images=bytes").status_code == 503
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    refused = server.client.get(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (501, "not_installed")
    assert "pip install 'latentfarm[parquet]'" in refused.json()["error"]["message"]


def test_the_name_of_the_key_is_in_the_journal(server: RunningServer, farm: Farm) -> None:
    done_batch(farm, ["a"], "named")
    finish(farm)
    decide(server, "named", {"index": 0, "pick": "picked"})
    [key] = farm.bucket.keys(picks_prefix("named"))
    [line] = parse_lines(farm.bucket.get(key), key)
    assert line.by == "local"

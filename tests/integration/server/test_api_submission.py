"""Submissions by the farm's own API: an uploaded file, an object of the bucket, rows; and what they would enqueue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.http_server import RunningServer

from latentfarm.farm import Farm

pytestmark = pytest.mark.integration

FILE = b'{"prompt": "a cat", "seed": 3}\n{"prompt": "a dog", "id": "dog"}\n'
WRONG = b'{"prompt": "a cat"}\n{"promt": "a cow"}\n{"prompt": "a dog", "width": 1030}\n'


def form(content: bytes, file_name: str = "prompts.jsonl", /, **options: Any) -> dict[str, Any]:
    return {"files": {"file": (file_name, content)}, "data": {"options": json.dumps(options)}}


def test_the_same_rows_are_the_same_batch_if_they_arrive_twice(
    server: RunningServer, farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    client = server.client
    uploaded = client.post(
        "/api/batches", **form(FILE, name="cats", model="unserved", priority=3, defaults={"num_inference_steps": 4})
    )
    assert (uploaded.status_code, uploaded.json()["total"]) == (201, 2)
    assert (farm.batch("cats").status().priority, farm.batch("cats").status().owner) == (3, "local")
    # a client that lost the answer sends it again
    assert client.post(
        "/api/batches", **form(FILE, name="cats", model="unserved", defaults={"num_inference_steps": 4})
    ).json() == (uploaded.json())
    other = client.post("/api/batches", **form(FILE, name="cats"))
    assert (other.status_code, other.json()["error"]["param"]) == (409, "name")

    farm.bucket.put("prompts/dogs.txt", b"a dog\n")
    for source in ("prompts/dogs.txt", f"s3://{farm.bucket.name}/prompts/dogs.txt"):
        stored = client.post("/api/batches", json={"source": source, "name": "dogs", "model": "other"})
        assert (stored.status_code, stored.json()["model"]) == (201, "other")
    jobs = client.get("/api/batches/cats/jobs").json()["jobs"]
    assert [job["request"]["prompt"] for job in jobs] == ["a cat", "a dog"]
    assert [each["batch"] for each in client.get("/api/batches").json()["batches"]] == ["dogs", "cats"]
    assert list(tmp_path.iterdir()) == []


def test_invalid_rows_are_reported_with_place_value_and_cure_and_nothing_is_stored(
    server: RunningServer, farm: Farm
) -> None:
    refused = server.client.post("/api/batches", **form(WRONG, name="cats"))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"], error["total"]) == (422, "invalid_rows", "file", 2)
    assert error["problems"][1] == "prompts.jsonl line 3: width 1030 is not a multiple of 8; write 1024 or 1032"
    assert "did you mean 'prompt'? Or use keep_columns" in error["problems"][0]
    planned = server.client.post("/api/plan", **form(WRONG, sweeps=["seed=1..4"])).json()
    assert (planned["rows"], planned["invalid"], planned["jobs"]) == (3, 2, 4)
    assert len(planned["problems"]) == 2
    rows = server.client.post("/api/batches", json={"rows": ["a cat", 5]}).json()["error"]
    assert rows["problems"] == ["row 2: 5 is neither a text nor a dictionary"]
    assert farm.ledger.batches() == []


@pytest.mark.parametrize(
    ("request_of", "status", "message"),
    [
        ({"json": {}}, 400, "write either rows or source"),
        ({"json": {"rows": ["a"], "source": "b"}}, 400, "write either rows or source"),
        ({"json": {"rows": ["a"], "naam": "b"}}, 400, "naam is not known"),
        ({"json": {"rows": ["a"], "priority": "5"}}, 400, "priority '5' is invalid"),
        ({"json": {"rows": ["a"], "name": "A/B"}}, 400, "batch name 'A/B': write 1 to 64 of"),
        ({"json": {"rows": ["a"], "model": "a b"}}, 400, "model alias 'a b': write"),
        ({"json": {"rows": ["a"], "defaults": {"model": "b"}}}, 400, "defaults: 'model' is not a field of rows"),
        ({"json": {"rows": ["a"], "defaults": {"width": 1030}}}, 400, "width 1030 is not a multiple of 8"),
        ({"json": {"rows": ["a"], "sweeps": ["seed"]}}, 400, "seed"),
        ({"json": {"source": "/etc/passwd"}}, 400, "is no key"),
        ({"json": {"source": "../../x.jsonl"}}, 400, "is no key"),
        ({"json": {"source": "a" * 1_030}}, 400, "is no key"),
        ({"json": {"source": "s3://others/a.jsonl"}}, 400, "the object is in another bucket"),
        ({"json": {"source": "none.jsonl"}}, 400, "is not in the bucket; check its name"),
        ({"json": {"source": "batches"}}, 400, "is not in the bucket"),
        ({"data": {"rows": "a"}}, 415, "send Content-Type: application/json"),
        ({"files": {"file": ("a.doc", b"a")}}, 400, "or use format"),
        ({"files": {"other": ("a.txt", b"a")}}, 400, "the form has a field 'other'"),
        ({"files": [("file", ("a.txt", b"a")), ("file", ("b.txt", b"b"))]}, 400, "two files"),
        ({"files": {"options": (None, "{}")}}, 400, "no file"),
        ({"files": {"file": ("a.txt", b"")}}, 400, "a.txt has no prompts"),
        (form(b"a", "a.txt", keep_columns=3), 400, "keep_columns"),
        ({"files": {"file": ("a.txt", b"a")}, "data": {"options": "{"}}, 400, "is not JSON"),
    ],
)
def test_a_wrong_submission_is_refused_with_the_cure(
    shared_server: RunningServer, request_of: dict[str, Any], status: int, message: str
) -> None:
    refused = shared_server.client.post("/api/batches", **request_of)
    assert (refused.status_code, message in refused.json()["error"]["message"]) == (status, True), refused.text


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"name": "A/B"}, "name"),
        ({"model": "a b"}, "model"),
        ({"priority": 3.5}, "priority"),
        ({"sweeps": ["sed=1"]}, "sweeps"),
        ({"defaults": {"width": 1030}}, "defaults.width"),
        ({"defaults": {"scheduler": "nonsense"}}, "defaults.scheduler"),
        ({"defaults": {"sampler": "nonsense"}}, "defaults"),
        ({"defaults": {"negative_prompt": "(a)++", "prompt_syntax": "a1111"}}, "defaults.negative_prompt"),
        ({"columns": {"promt": "a"}}, None),
    ],
)
@pytest.mark.parametrize("path", ["/api/plan", "/api/batches"])
def test_an_error_names_the_option_that_it_is_about(
    shared_server: RunningServer, path: str, options: dict[str, Any], param: str | None
) -> None:
    error = shared_server.client.post(path, json={"rows": ["a cat"], **options}).json()["error"]
    assert (error["param"], "--" in error["message"]) == (param, False), error


def test_an_upload_larger_than_the_limit_is_refused_while_it_is_read(shared_server: RunningServer) -> None:
    limited = shared_server.client.post(
        "/api/batches", content=b"", headers={"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "0"}
    )
    assert limited.status_code == 400
    options: dict[str, Any] = {"files": {"file": ("a.txt", b"a")}, "data": {"options": " " * 1_100_000}}
    assert shared_server.client.post("/api/batches", **options).status_code == 413

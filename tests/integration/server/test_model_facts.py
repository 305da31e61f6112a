"""What workers announce of a model, over HTTP: it is listed, requests are checked against it, and it has defaults."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.support.http_server import RunningServer

from latentfarm.farm import Farm
from latentfarm.ledger.constants import INTERACTIVE_PRIORITY
from latentfarm.model_facts import ModelFacts
from latentfarm.storage.manifest import ManifestReader, read_header

pytestmark = pytest.mark.integration

FACTS = ModelFacts(
    pipeline="ZImagePipeline",
    model_digest="ab12",
    licence="apache-2.0",
    native_width=1024,
    native_height=512,
    pixel_multiple=16,
    num_inference_steps=8,
    guidance_scale=0,
    flow=True,
    max_prompt_tokens=512,
)
OPENAI, A1111 = "/v1/images/generations", "/sdapi/v1/txt2img"


@pytest.fixture
def turbo(serving: Serving, farm: Farm) -> RunningServer:
    """A server whose default model has a worker that has announced it, and renders nothing."""
    farm.ledger.heartbeat("turbo", "w", about={"device": "cpu", "facts": FACTS.model_dump_json()})
    return serving(default_model="turbo")


def requested(server: RunningServer, farm: Farm, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the job that a request makes, and cancel it."""
    client = threading.Thread(target=lambda: server.client.post(path, json=body))
    client.start()
    until(lambda: farm.ledger.pending_jobs().get("turbo") == 1)
    [name] = farm.ledger.batches(interactive=True)
    entry = ManifestReader(farm.bucket).entry(name, 0)
    farm.batch(name).cancel()
    client.join()
    header = read_header(farm.bucket, name)
    assert header is not None
    assert (header.priority, header.model_facts) == (INTERACTIVE_PRIORITY, FACTS)
    return entry


def test_the_facts_of_a_model_are_listed(turbo: RunningServer) -> None:
    wanted = FACTS.model_dump(mode="json")
    assert turbo.client.get("/v1/models/turbo").json()["facts"] == wanted
    assert turbo.client.get("/v1/models").json()["data"][0]["facts"] == wanted
    assert turbo.client.get("/api/models").json()["models"][0]["facts"] == wanted


def test_a_plan_has_the_defaults_of_the_model(turbo: RunningServer) -> None:
    body = {"rows": ["a", {"prompt": "b", "width": 1032}], "model": "turbo"}

    planned = turbo.client.post("/api/plan", json=body).json()
    unknown = turbo.client.post("/api/plan", json={"rows": ["a"], "model": "other"}).json()

    assert (planned["num_inference_steps"], planned["guidance_scale"], planned["max_prompt_tokens"]) == (8, 0, 512)
    assert planned["problems"] == ["row 2: width 1032 is not a multiple of 16; write 1024 or 1040"]
    assert (unknown["num_inference_steps"], unknown["guidance_scale"], unknown["max_prompt_tokens"]) == (25, 7.5, 77)


def test_rows_and_defaults_that_do_not_fit_are_refused(turbo: RunningServer) -> None:
    by_row = turbo.client.post("/api/batches", json={"rows": [{"prompt": "a", "width": 72}], "model": "turbo"})
    by_default = turbo.client.post(
        "/api/batches", json={"rows": ["a"], "model": "turbo", "defaults": {"scheduler": "ddim"}}
    )

    assert by_row.status_code == 422
    assert by_row.json()["error"]["problems"] == ["row 1: width 72 is not a multiple of 16; write 64 or 80"]
    assert by_default.status_code == 400
    assert by_default.json()["error"]["param"] == "defaults.scheduler"
    assert "flow_euler" in by_default.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"), [(OPENAI, {"size": "72x64"}), (A1111, {"width": 72, "height": 64})], ids=["openai", "a1111"]
)
def test_an_image_of_a_size_that_does_not_fit_is_refused_at_once(
    turbo: RunningServer, farm: Farm, path: str, body: dict[str, Any]
) -> None:
    answer = turbo.client.post(path, json={"prompt": "a cat", **body})

    assert answer.status_code == 400
    assert "width 72 is not a multiple of 16; write 64 or 80" in answer.text
    assert farm.ledger.batches(interactive=True) == []


def test_openai_images_get_what_the_client_does_not_state(turbo: RunningServer, farm: Farm) -> None:
    entry = requested(turbo, farm, OPENAI, {"prompt": "a cat", "guidance_scale": 2})

    assert (entry["num_inference_steps"], entry["guidance_scale"]) == (8, 2)


def test_the_web_uis_own_defaults_stay(turbo: RunningServer, farm: Farm) -> None:
    entry = requested(turbo, farm, A1111, {"prompt": "a cat"})

    assert (entry["num_inference_steps"], entry["guidance_scale"]) == (50, 7.0)

"""AUTOMATIC1111's protocol: images as its clients send for them, its menus, its options, progress and interrupt."""

from __future__ import annotations

import io
import json
import threading
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.support.client_requests import client_requests
from tests.support.http_server import RunningServer, RunningWorker

from latentfarm.adapter_kind import AdapterKind
from latentfarm.batch import Batch
from latentfarm.batch_kind import BatchKind
from latentfarm.farm import Farm
from latentfarm.server.security.keys import new_key

pytestmark = pytest.mark.integration

SMALL = {"prompt": "a (red:1.2) circle", "steps": 3, "width": 64, "height": 64}


def test_an_image_has_the_settings_that_info_reports(server: RunningServer, rendering: RunningWorker) -> None:
    assert rendering
    body = {**SMALL, "negative_prompt": "blue", "sampler_name": "Euler a", "seed": 7, "n_iter": 2, "batch_size": 2}
    answer = server.client.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["parameters"] == body
    files = [b64decode(image, validate=True) for image in found["images"]]
    info = json.loads(found["info"])
    assert info["all_seeds"] == [7, 8, 9, 10]
    assert (info["seed"], info["steps"], info["batch_size"], info["sampler_name"]) == (7, 3, 2, "Euler a")
    assert (info["width"], info["height"], info["cfg_scale"], info["clip_skip"]) == (64, 64, 7.0, 1)
    assert (info["prompt"], info["negative_prompt"], info["sd_model_name"]) == (body["prompt"], "blue", "mini")
    for file, text, seed in zip(files, info["infotexts"], info["all_seeds"], strict=True):
        with Image.open(io.BytesIO(file)) as image:
            assert image.size == (64, 64)
            assert image.info["parameters"] == text
        assert text.startswith("a (red:1.2) circle\nNegative prompt: blue\nSteps: 3, Sampler: Euler a, ")
        assert f"Seed: {seed}, Size: 64x64" in text
    # the first of several is the image of its seed alone
    alone = server.client.post("/sdapi/v1/txt2img", json={**body, "seed": 9, "n_iter": 1, "batch_size": 1}).json()
    assert alone["images"] != found["images"][:1]
    assert _pixels(alone["images"][0]) == _pixels(found["images"][2])


def _pixels(text: str) -> bytes:
    with Image.open(io.BytesIO(b64decode(text))) as image:
        return image.tobytes()


def test_a_client_may_do_without_the_images_and_choose_their_format(
    server: RunningServer, rendering: RunningWorker
) -> None:
    assert rendering
    found = server.client.post("/sdapi/v1/txt2img", json={**SMALL, "send_images": False}).json()
    assert found["images"] == []
    assert json.loads(found["info"])["seed"] >= 0
    chosen = {**SMALL, "override_settings": {"samples_format": "jpg", "CLIP_stop_at_last_layers": 2}}
    found = server.client.post("/sdapi/v1/txt2img", json=chosen).json()
    assert b64decode(found["images"][0])[:3] == b"\xff\xd8\xff"
    info = json.loads(found["info"])
    assert info["clip_skip"] == 2
    assert "Clip skip: 2" in info["infotexts"][0]


def test_the_menus_are_those_of_the_farm(server: RunningServer, rendering: RunningWorker) -> None:
    assert rendering
    tavern = client_requests("sillytavern-stable-diffusion")

    def get(name: str) -> Any:
        answer = tavern[name].send(server.url)
        assert answer.status == 200, answer.body
        return answer.json()

    assert {"DDIM", "Euler a", "DPM++ 2M"} <= {each["name"] for each in get("samplers")}
    assert {"automatic", "karras", "sgm_uniform"} <= {each["name"] for each in get("schedulers")}
    assert [each["title"] for each in get("sd-models")] == ["mini"]
    assert [each["name"] for each in get("upscalers")] == ["None", "Lanczos"]
    assert [each["name"] for each in get("latent-upscale-modes")] == ["Latent"]
    assert get("sd-vae") == []
    # SillyTavern takes it for Forge's, and does without
    assert tavern["sd-modules"].send(server.url).status == 404
    idle = get("progress")
    # it waits for these two after it has chosen a model
    assert (idle["progress"], idle["state"]["job_count"]) == (0.0, 0)
    assert "forge_preset" not in get("options")


def test_adapters_that_workers_announce_are_listed(server: RunningServer, farm: Farm, rendering: RunningWorker) -> None:
    assert rendering

    def get(path: str) -> Any:
        answer = server.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    found = farm.ledger.announced_adapters("mini")
    assert found is not None
    assert [each["name"] for each in get("/sdapi/v1/loras")] == list(found[AdapterKind.LORA])
    assert set(get("/sdapi/v1/embeddings")["loaded"]) == {f"<{name}>" for name in found[AdapterKind.EMBEDDING]}
    assert get("/controlnet/model_list") == {"model_list": list(found[AdapterKind.CONTROLNET])}
    assert get("/controlnet/module_list") == {"module_list": ["none", "canny"]}


def test_the_requests_of_clients_give_images(server: RunningServer, rendering: RunningWorker) -> None:
    assert rendering
    webui = client_requests("open-webui-automatic1111")
    assert webui["verify"].send(server.url).status == 200
    assert {each["title"]: each["model_name"] for each in webui["models"].send(server.url).json()} == {"mini": "mini"}
    found = webui["generate"].send(server.url).json()
    assert len(found["images"]) == 2
    assert json.loads(found["info"])["infotexts"][0].startswith("A caf\u00e9 on a rainy evening")
    tavern = client_requests("sillytavern-stable-diffusion")
    assert tavern["set-model"].send(server.url).status == 200
    found = tavern["generate"].send(server.url).json()
    assert b64decode(found["images"][0]).startswith(b"\x89PNG")
    assert not {"auth", "url"} & found["parameters"].keys()


def test_a_client_that_hangs_up_cancels_its_images(serving: Serving, farm: Farm) -> None:
    # LibreChat's images are large for a test: no worker renders them
    chat = client_requests("librechat-stable-diffusion")["generate"]
    with pytest.raises(TimeoutError):
        chat.send(serving(default_model="absent").url, timeout_s=0.5)
    until(lambda: not farm.ledger.unfinished_by_owner())
    [(event, batch)] = [
        (each.event, each.batch) for each in farm.ledger.read_events("0-0") if each.event in {"open", "cancelled"}
    ][1:]
    job = next(Batch(farm.connection, batch).results())
    assert (event, job["state"]) == ("cancelled", "cancelled")
    request = job["request"]
    assert (request["width"], request["height"], request["num_inference_steps"]) == (1024, 1024, 22)


def test_a_chosen_model_is_that_of_later_requests(server: RunningServer, farm: Farm, rendering: RunningWorker) -> None:
    assert rendering
    client = server.client
    farm.submit(["a cat"], model="other")
    until(lambda: len(client.get("/sdapi/v1/sd-models").json()) == 2)
    options = client.get("/sdapi/v1/options").json()
    assert options["sd_model_checkpoint"] == "mini"
    # Open WebUI sends all options back
    chosen = client.post("/sdapi/v1/options", json={**options, "sd_model_checkpoint": "other"})
    assert (chosen.status_code, chosen.text) == (200, "null")
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "other"
    named = client.post("/sdapi/v1/txt2img", json={**SMALL, "override_settings": {"sd_model_checkpoint": "mini"}})
    assert json.loads(named.json()["info"])["sd_model_name"] == "mini"

    unknown = client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "sdxl.safetensors [31e35c80fc]"})
    assert unknown.status_code == 404
    assert unknown.json()["detail"] == "the model 'sdxl' is not served; write one of mini, other"
    fixed = client.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 2})
    assert (fixed.status_code, fixed.json()["error"]) == (400, "invalid_request")
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": ""}).status_code == 200
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "mini"


def test_progress_rises_and_an_interrupt_at_any_server_cancels_the_images_of_the_key(
    server: RunningServer, serving: Serving, farm: Farm, rendering: RunningWorker
) -> None:
    assert rendering
    answers: list[Any] = []

    def generate() -> None:
        body = {**SMALL, "sampler_name": "Euler", "steps": 100, "batch_size": 2}
        answers.append(server.client.post("/sdapi/v1/txt2img", json=body))

    waiting = threading.Thread(target=generate)
    waiting.start()
    seen: list[dict[str, Any]] = []

    def stepped() -> bool:
        seen.append(server.client.get("/sdapi/v1/progress").json())
        return bool(seen[-1]["state"]["sampling_step"] > 5)

    until(stepped)
    assert 0 < seen[-1]["progress"] < 1
    assert (seen[-1]["state"]["job_count"], seen[-1]["state"]["sampling_steps"]) == (2, 100)
    assert seen[-1]["eta_relative"] > 0
    other = serving()
    elsewhere = other.client.get("/sdapi/v1/progress").json()
    assert (elsewhere["state"]["job_count"], elsewhere["state"]["sampling_step"]) == (2, 0)
    interrupt = client_requests("sillytavern-stable-diffusion")["interrupt"].send(other.url)
    assert (interrupt.status, interrupt.json()) == (200, {})
    waiting.join(30)
    assert (answers[0].status_code, answers[0].json()["error"]) == (409, "cancelled")
    idle = server.client.get("/sdapi/v1/progress").json()
    assert (idle["progress"], idle["state"]["job_count"]) == (0.0, 0)
    assert (BatchKind.INTERACTIVE, "local") not in farm.ledger.unfinished_by_owner()


def test_what_is_not_supported_is_refused_in_the_web_uis_shape(server: RunningServer) -> None:
    client = server.client
    refused = client.post("/sdapi/v1/txt2img", json={**SMALL, "tiling": True})
    assert refused.status_code == 400
    assert refused.json() == {
        "error": "invalid_request",
        "detail": "tiling true: it is not supported; set it to false, 0 or an empty text",
        "body": "",
        "errors": refused.json()["detail"],
    }
    assert client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", "n_iter": "two"}).status_code == 400
    assert client.post("/sdapi/v1/txt2img", json=[]).status_code == 400


def test_a_model_that_is_not_served_is_reported_and_clients_still_find_the_server(serving: Serving, farm: Farm) -> None:
    client = serving(default_model="absent", worker_wait_s=0).client
    missing = client.post("/sdapi/v1/txt2img", json=SMALL)
    assert (missing.status_code, missing.json()["error"]) == (503, "no_worker")
    assert int(missing.headers["Retry-After"]) > 0
    farm.ledger.choose_model("local", "gone")
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == ""
    assert client.post("/sdapi/v1/txt2img", json=SMALL).status_code == 404


def test_a_key_is_the_password_and_has_its_own_model(
    serving: Serving, farm: Farm, rendering: RunningWorker, tmp_path: Path
) -> None:
    assert rendering
    farm.submit(["a cat"], model="other")
    made = {name: new_key(name, "read,submit") for name in ("alice", "bob")}
    file = tmp_path / "keys.txt"
    file.write_text("\n".join(key.line for _, key in made.values()))
    url = serving(api_keys_file=file).url
    alice, bob = (f"{name}:{secret}" for name, (secret, _) in made.items())
    tavern = client_requests("sillytavern-stable-diffusion")
    # without credentials, clients send an empty name and password
    for credentials in ("", "alice:wrong", f"{alice}x"):
        refused = tavern["options"].send(url, credentials)
        assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, 'Basic realm="latentfarm"')
        assert refused.json()["error"] in {"no_api_key", "invalid_api_key"}
    until(lambda: len(tavern["sd-models"].send(url, alice).json()) == 2)
    assert tavern["set-model"].send(url, alice).status == 200
    farm.ledger.choose_model("bob", "other")
    models = [tavern["options"].send(url, who).json()["sd_model_checkpoint"] for who in (alice, bob)]
    assert models == ["mini", "other"]
    assert tavern["generate"].send(url, alice).status == 200
    assert tavern["interrupt"].send(url, bob).status == 200

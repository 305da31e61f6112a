"""OpenAI's images and models by its own client, over a real server and a real worker."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import httpx2
import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse
from PIL import Image, ImageChops, ImageStat
from tests.integration.server.conftest import Serving
from tests.support.http_server import RunningServer, RunningWorker

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import BatchState
from latentfarm.farm import Farm

pytestmark = pytest.mark.integration

#: a size that OpenAI's clients may choose, with fields of diffusers
SMALL: dict[str, Any] = {"size": "64x128", "extra_body": {"num_inference_steps": 4, "guidance_scale": 3, "seed": 7}}
GENERATIONS = "/v1/images/generations"
#: scope by key and name
KEYS = {"ann": "submit", "bob": "submit", "ray": "read"}


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def opened(encoded: str | None) -> Image.Image:
    with Image.open(BytesIO(b64decode(encoded or "", validate=True))) as image:
        image.load()
        return image


def test_a_client_without_settings_gets_bytes(client: openai.OpenAI, farm: Farm, rendering: RunningWorker) -> None:
    assert rendering
    assert "mini" in [model.id for model in client.models.list()]
    assert client.models.retrieve("mini").owned_by == "latentfarm"
    answer = client.images.generate(prompt="a red circle", model="gpt-image-1", n=2, quality="auto", **SMALL)
    ImagesResponse.model_validate(answer.model_dump(), strict=True)
    first, second = (opened(entry.b64_json) for entry in answer.data or [])
    assert first.size == second.size == (64, 128)
    assert first.tobytes() != second.tobytes()
    assert "seed: 8" in str(second.info).lower()
    assert (answer.size, answer.output_format, answer.background) == ("64x128", "png", "opaque")
    assert answer.usage is not None
    assert (answer.usage.output_tokens, answer.usage.input_tokens_details.image_tokens) == (2 * 8 * 16, 0)
    # start, "a", "red", "circle" and end, and the start and end of the empty negative prompt
    assert answer.usage.total_tokens - 2 * 8 * 16 == answer.usage.input_tokens >= 5
    (name,) = farm.ledger.batches(interactive=True)
    record = farm.ledger.batch(name)
    assert (record.kind, record.owner, record.state) == (BatchKind.INTERACTIVE, "local", BatchState.COMPLETE)


def test_the_bytes_are_in_the_wanted_format_or_at_a_url(client: openai.OpenAI, rendering: RunningWorker) -> None:
    assert rendering
    answer = client.images.generate(prompt="a red circle", output_format="webp", output_compression=50, **SMALL)
    assert answer.output_format == "webp"
    assert opened((answer.data or [])[0].b64_json).format == "WEBP"
    answer = client.images.generate(prompt="a red circle", response_format="url", user="7", style="vivid", **SMALL)
    url = (answer.data or [])[0].url
    assert url is not None
    with Image.open(BytesIO(httpx2.get(url).content)) as image:
        assert image.size == (64, 128)


def test_a_stream_has_estimates_of_that_very_image(server: RunningServer, rendering: RunningWorker) -> None:
    assert rendering

    async def stream() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            body = {**SMALL["extra_body"], "num_inference_steps": 12}
            events = await client.images.generate(
                prompt="a red circle", size="64x128", stream=True, partial_images=3, extra_body=body
            )
            return [event async for event in events]

    *partial, completed = asyncio.run(stream())
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    for event in partial:
        ImageGenPartialImageEvent.model_validate(event.model_dump(), strict=True)
    ImageGenCompletedEvent.model_validate(completed.model_dump(), strict=True)
    assert (completed.type, completed.size, completed.usage.output_tokens) == (
        "image_generation.completed",
        "64x128",
        8 * 16,
    )
    final = opened(completed.b64_json).convert("RGB")
    differences = []
    for event in partial:
        difference = ImageChops.difference(final, opened(event.b64_json).convert("RGB"))
        differences.append(sum(ImageStat.Stat(difference).mean))
    assert differences == sorted(differences, reverse=True)
    # the partial images cost the image nothing: it has the bytes that it has without them
    body = {**SMALL["extra_body"], "num_inference_steps": 12, "prompt": "a red circle", "size": "64x128"}
    answer = server.client.post(GENERATIONS, json=body).json()
    assert opened(answer["data"][0]["b64_json"]).tobytes() == opened(completed.b64_json).tobytes()


def test_a_stream_without_partial_images_has_each_image(client: openai.OpenAI, rendering: RunningWorker) -> None:
    assert rendering
    events = client.images.generate(prompt="a red circle", n=2, stream=True, output_format="jpeg", **SMALL)
    found = list(events)
    assert [event.type for event in found] == ["image_generation.completed"] * 2
    assert [opened(event.b64_json).format for event in found] == ["JPEG", "JPEG"]


def test_each_of_many_clients_gets_its_own_image(server: RunningServer, rendering: RunningWorker) -> None:
    assert rendering

    async def render(seeds: range) -> list[ImagesResponse]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            body = {"num_inference_steps": 2, "guidance_scale": 0}
            pending = [
                client.images.generate(prompt="a circle", size="64x64", extra_body={**body, "seed": seed})
                for seed in seeds
            ]
            return await asyncio.gather(*pending)

    seeds = range(100, 120)
    for seed, answer in zip(seeds, asyncio.run(render(seeds)), strict=True):
        (entry,) = answer.data or []
        assert f"Seed: {seed}," in str(opened(entry.b64_json).info["parameters"])


REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({}, "prompt", "prompt is missing; write it"),
    ({"prompt": ""}, "prompt", "prompt '' is empty"),
    ({"prompt": "a", "n": 11}, "n", "write less than or equal to 10"),
    ({"prompt": "a", "n": "2"}, "n", "write a number"),
    ({"prompt": "a", "n": 5, "num_images_per_prompt": 5}, "n", "the request has 25 images; write 1 to 10"),
    ({"prompt": "a", "size": "1000x1001"}, "height", "1001 is not a multiple of 8"),
    ({"prompt": "a", "size": "big"}, "size", 'write "512x512"'),
    ({"prompt": "a", "sead": 7}, "sead", "did you mean 'seed'?"),
    ({"prompt": "a", "seed": "x"}, "seed", "is invalid"),
    ({"prompt": "a", "output_format": "svg"}, "output_format", "write one of png, webp, jpeg"),
    ({"prompt": "a", "response_format": "file"}, "response_format", "'url' or 'b64_json'"),
    ({"prompt": "a", "stream": True, "partial_images": 4}, "partial_images", "less than or equal to 3"),
    ({"prompt": "a", "stream": True, "response_format": "url"}, "response_format", "a stream has no URLs"),
    ({"prompt": "a", "true_cfg_scale": 4}, "true_cfg_scale", "write guidance_scale"),
    ({"prompt": "a", "image": "data:"}, "image", "is no data URL of an image; write data:image/png;base64,..."),
    ({"prompt": "a", "mask": "data:"}, "mask", "is for /v1/images/edits; send it there, or write mask_image"),
    ({"prompt": "a", "strength": 0.5}, "strength", "strength 0.5 has no image; write image, or remove it"),
]


def test_an_invalid_request_is_refused_with_the_field_and_the_cure(
    server: RunningServer, client: openai.OpenAI, farm: Farm, rendering: RunningWorker
) -> None:
    assert rendering
    for body, param, part in REFUSED:
        answer = server.client.post(GENERATIONS, json=body)
        error = answer.json()["error"]
        assert (answer.status_code, answer.headers["x-should-retry"], error["param"]) == (400, "false", param), error
        assert error["type"] == "invalid_request_error"
        assert part in error["message"], error
        assert "--" not in error["message"], error
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(prompt="a", model="sdxl")
    assert unknown.value.code == "model_not_found"
    assert "is not served; write one of mini" in str(unknown.value)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sdxl")
    # what the model cannot do is known from its worker
    with pytest.raises(openai.BadRequestError, match="clip_skip 20 leaves too little of the text encoder") as refused:
        client.images.generate(prompt="a", extra_body={"clip_skip": 20})
    assert (refused.value.code, refused.value.param) == ("invalid_request", "clip_skip")
    # other errors of the model come from the worker itself
    wrong = {"scheduler": "euler", "scheduler_options": {"no_such_option": 1}, "num_inference_steps": 1}
    with pytest.raises(openai.BadRequestError) as failed:
        client.images.generate(prompt="a", extra_body=wrong)
    assert failed.value.code == "scheduler"
    with pytest.raises(openai.APIError, match="no_such_option"):
        list(client.images.generate(prompt="a", stream=True, extra_body=wrong))
    assert all(farm.ledger.batch(name).total == 1 for name in farm.ledger.batches(interactive=True))


def test_variations_are_refused(client: openai.OpenAI) -> None:
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(openai.BadRequestError, match="variations are not supported; send the image and a prompt to /v1"),
    ):
        client.images.create_variation(image=("a.png", b"x"))


def test_a_full_farm_answers_429_and_one_without_workers_503(serving: Serving, farm: Farm) -> None:
    server = serving(max_pending_images=3, max_pending_images_per_key=2, worker_wait_s=0.3, default_model="idle")
    body = {"prompt": "a red circle", "n": 2}
    alone = server.client.post(GENERATIONS, json=body)
    assert (alone.status_code, alone.json()["error"]["code"]) == (503, "no_worker")
    assert (alone.headers["x-should-retry"], alone.headers["retry-after"]) == ("true", "10")
    (name,) = farm.ledger.batches(interactive=True)
    assert farm.ledger.batch(name).state is BatchState.CANCELLED
    stream = server.client.post(GENERATIONS, json={**body, "stream": True})
    assert (stream.status_code, stream.text.partition("\n")[0]) == (200, "event: error")
    assert '"code":"no_worker"' in stream.text
    # another server of the farm waits for one image of this key
    farm.ledger.create_batch("other", digest="d", model="idle", kind=BatchKind.INTERACTIVE, owner="local")
    farm.ledger.append_jobs("other", before=0, total=1, parts_digest="c", closed=True)
    full = server.client.post(GENERATIONS, json=body)
    assert (full.status_code, full.headers["retry-after"], full.headers["x-should-retry"]) == (429, "5", "true")
    assert full.json()["error"]["message"].startswith("the key has 1 of 2 images that may wait")
    assert full.json()["error"]["type"] == "rate_limit_error"
    many = server.client.post(GENERATIONS, json={**body, "n": 3})
    assert (many.status_code, many.json()["error"]["param"]) == (400, "n")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError):
            client.images.generate(prompt="a", n=2)
        with pytest.raises(openai.InternalServerError) as unavailable:
            client.images.generate(prompt="a", model="idle")
    assert cast("dict[str, Any]", unavailable.value.body)["code"] == "no_worker"


def test_images_belong_to_the_key_that_waits_for_them(serving: Serving, farm: Farm, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    lines = [f"{name}:{sha256(name.encode()).hexdigest()}:{scope}" for name, scope in KEYS.items()]
    keys.write_text("\n".join(lines))
    server = serving(api_keys_file=keys, max_pending_images_per_key=1, worker_wait_s=0.1, default_model="idle")
    # one image of ann is waited for at another server
    farm.ledger.create_batch("other", digest="d", model="idle", kind=BatchKind.INTERACTIVE, owner="ann")
    farm.ledger.append_jobs("other", before=0, total=1, parts_digest="c", closed=True)
    found = {}
    for name in (*KEYS, "eve"):
        headers = {"Authorization": f"Bearer {name}"}
        found[name] = server.client.post(GENERATIONS, json={"prompt": "a"}, headers=headers).status_code
    assert found == {"ann": 429, "bob": 503, "ray": 403, "eve": 401}
    (name,) = (name for name in farm.ledger.batches(interactive=True) if name != "other")
    assert farm.ledger.batch(name).owner == "bob"

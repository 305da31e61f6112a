"""Images that begin with an image: by OpenAI's own client, by its batches, and by the web UI's protocol."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import openai
import pytest
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent, ImagesResponse
from PIL import Image, ImageChops, ImageDraw, ImageStat
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.support.http_server import RunningServer, RunningWorker

from latentfarm.batch import Batch
from latentfarm.farm import Farm
from latentfarm.inputs.store import digest_of

pytestmark = pytest.mark.integration

FIELDS: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 3, "seed": 7}
EDITS = "/v1/images/edits"


def image_of(width: int = 64, height: int = 64, colour: str = "white") -> Image.Image:
    image = Image.new("RGB", (width, height), colour)
    ImageDraw.Draw(image).rectangle((width // 8, height // 8, width // 2, height // 2), fill="red")
    return image


def encode(image: Image.Image) -> bytes:
    body = BytesIO()
    image.save(body, "PNG")
    return body.getvalue()


def data_url(body: bytes) -> str:
    return f"data:image/png;base64,{b64encode(body).decode()}"


def opened(encoded: str | None) -> Image.Image:
    with Image.open(BytesIO(b64decode(encoded or "", validate=True))) as image:
        image.load()
        return image


def difference(one: Image.Image, other: Image.Image) -> float:
    return max(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean)


def pixels(server: RunningServer, path: str, body: dict[str, Any]) -> bytes:
    """Return the samples of the one image that a request gives."""
    answer = server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    [entry] = answer.json()["data"]
    return opened(entry["b64_json"]).tobytes()


def requests_of(farm: Farm) -> list[dict[str, Any]]:
    """Return the requests of all interactive jobs, newest batch last."""
    names = farm.ledger.batches(interactive=True)
    return [result["request"] for name in names for result in Batch(farm.connection, name).results()]


SOURCE = image_of()
#: transparent on the right half, which is painted again
HOLE = SOURCE.convert("RGBA")
HOLE.putalpha(Image.frombytes("L", (64, 64), (b"\xff" * 32 + b"\0" * 32) * 64))
LEFT, RIGHT = (0, 0, 32, 64), (32, 0, 64, 64)


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_client_edits_an_image(client: openai.OpenAI, farm: Farm, rendering: RunningWorker) -> None:
    assert rendering
    body = encode(SOURCE)
    found = {}
    for strength in (0.2, 1.0):
        answer = client.images.edit(
            image=("a.png", body), prompt="a blue circle", n=2, extra_body={**FIELDS, "strength": strength}
        )
        ImagesResponse.model_validate(answer.model_dump(), strict=True)
        first, second = (opened(entry.b64_json) for entry in answer.data or [])
        assert first.size == second.size == (64, 64)
        assert first.tobytes() != second.tobytes()
        found[strength] = first
        assert f"Denoising strength: {strength:g}" in first.info["parameters"]
    assert difference(found[0.2], SOURCE) < difference(found[1.0], SOURCE)
    assert {request["image"] for request in requests_of(farm)} == {digest_of(body)}
    assert answer.usage is not None
    assert answer.usage.output_tokens == 2 * 8 * 8


def test_what_a_mask_keeps_stays(client: openai.OpenAI, rendering: RunningWorker) -> None:
    assert rendering
    own = Image.new("L", (64, 64), 0)
    own.paste(255, RIGHT)
    # OpenAI's mask is transparent where the image is painted, the rows' one is white there
    made = client.images.edit(image=("a.png", encode(SOURCE)), mask=encode(HOLE), prompt="a star", extra_body=FIELDS)
    first = opened((made.data or [])[0].b64_json)
    assert difference(first.crop(LEFT), SOURCE.crop(LEFT)) <= 2
    assert difference(first.crop(RIGHT), SOURCE.crop(RIGHT)) > 2
    urls = {"image": data_url(encode(SOURCE)), "mask_image": data_url(encode(own))}
    answer = client.post("/images/edits", body={"prompt": "a star", **FIELDS, **urls}, cast_to=ImagesResponse)
    assert opened((answer.data or [])[0].b64_json).tobytes() == first.tobytes()


def test_an_image_of_another_size_is_cropped_with_a_note(server: RunningServer, rendering: RunningWorker) -> None:
    assert rendering
    body = encode(image_of(150, 101))
    answer = server.client.post(EDITS, files={"image": body}, data={"prompt": "a star", "num_inference_steps": "2"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["size"] == "152x104"
    assert found["notes"] == ["the image is cropped from 150x101 to 152x104; resize chooses pad or stretch"]
    form = {"prompt": "a star", "num_inference_steps": "2", "size": "64x128", "resize": "pad"}
    found = server.client.post(EDITS, files={"image[]": body}, data=form).json()
    assert (found["size"], "notes" in found) == ("64x128", False)
    assert opened(found["data"][0]["b64_json"]).size == (64, 128)


def test_an_edit_is_streamed(client: openai.OpenAI, rendering: RunningWorker) -> None:
    assert rendering
    events = client.images.edit(
        image=encode(SOURCE), prompt="a star", stream=True, partial_images=2, extra_body={**FIELDS, "strength": 1}
    )
    *partial, completed = list(events)
    for event in partial:
        ImageEditPartialImageEvent.model_validate(event.model_dump(), strict=True)
    ImageEditCompletedEvent.model_validate(completed.model_dump(), strict=True)
    assert (len(partial), completed.type, completed.size) == (2, "image_edit.completed", "64x64")


def test_an_uploaded_file_is_an_input(client: openai.OpenAI, server: RunningServer, rendering: RunningWorker) -> None:
    assert rendering
    file = client.files.create(file=("a.png", encode(SOURCE)), purpose="vision")
    body = {"prompt": "a star", "images": [{"file_id": file.id}], **FIELDS}
    by_id = pixels(server, EDITS, body)
    body["images"] = [{"image_url": data_url(encode(SOURCE))}]
    assert pixels(server, EDITS, body) == by_id
    client.files.delete(file.id)
    body["images"] = [{"file_id": file.id}]
    gone = server.client.post(EDITS, json=body)
    assert (gone.status_code, gone.json()["error"]["code"]) == (400, "invalid_image")
    assert "is no file of this server, or it has expired; upload the image again" in gone.json()["error"]["message"]
    # rows of generations may name inputs too
    row = {"prompt": "a star", "image": data_url(encode(SOURCE)), **FIELDS}
    assert pixels(server, "/v1/images/generations", row) == by_id


def test_what_is_no_image_or_may_not_be_read_is_refused(
    server: RunningServer, client: openai.OpenAI, rendering: RunningWorker
) -> None:
    assert rendering
    for image, problem in (
        (b"the bytes of an image", "image is not an image of a known format; store it as PNG, JPEG or WebP"),
        (encode(SOURCE)[:-40], "image is truncated or damaged"),
    ):
        with pytest.raises(openai.BadRequestError, match=problem) as refused:
            client.images.edit(image=image, prompt="a star")
        assert (refused.value.code, refused.value.param) == ("invalid_image", "image")
    with pytest.raises(openai.BadRequestError, match="mask has no transparent part; make the part to paint"):
        client.images.edit(image=encode(SOURCE), mask=encode(SOURCE), prompt="a star")
    with pytest.raises(openai.BadRequestError, match="image is there twice"):
        client.images.edit(image=[encode(SOURCE), encode(SOURCE)], prompt="a star")
    for source, problem in (
        ("/etc/passwd", "is a file of your own machine"),
        ("s3://another/a.png", "is in another bucket than the farm's"),
        ("https://example.org/a.png", "and LATENTFARM_INPUT_HOSTS is empty"),
        ("http://169.254.169.254/", "only https is allowed"),
    ):
        answer = server.client.post(EDITS, json={"prompt": "a star", "image": source})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image")
        assert problem in answer.json()["error"]["message"], answer.text
        row = server.client.post("/v1/images/generations", json={"prompt": "a star", "image": source})
        assert (row.status_code, problem in row.json()["error"]["message"]) == (400, True)
        rows = {"rows": [{"prompt": "a star", "image": source}], "model": "mini"}
        assert problem in server.client.post("/api/batches", json=rows).json()["error"]["problems"][0]


def test_bodies_of_images_are_bounded(server: RunningServer, serving: Serving, rendering: RunningWorker) -> None:
    assert rendering
    client = serving(max_image_body_bytes=10_000).client
    for path in (EDITS, "/sdapi/v1/img2img", "/sdapi/v1/txt2img"):
        assert client.post(path, json={"prompt": "a" * 10_000}).status_code == 413
    assert client.post(EDITS, files={"image": b"x" * 10_000}, data={"prompt": "a"}).status_code == 413
    # a body with an image may be longer than others
    longer = {"prompt": "a", "init_images": ["A" * 2_000_000]}
    answer = server.client.post("/sdapi/v1/img2img", json=longer)
    assert (answer.status_code, "is a file of your own machine" in answer.json()["detail"]) == (400, True)


def test_lines_of_a_batch_edit_images(client: openai.OpenAI, rendering: RunningWorker) -> None:
    assert rendering
    image = client.files.create(file=("a.png", encode(SOURCE)), purpose="vision")
    mask = client.files.create(file=("m.png", encode(HOLE)), purpose="vision")
    bodies: dict[str, dict[str, Any]] = {
        "whole": {"images": [{"file_id": image.id}], "strength": 0.5},
        "part": {"images": [{"image_url": data_url(encode(SOURCE))}], "mask": {"file_id": mask.id}},
        "local": {"images": [{"image_url": "/etc/passwd"}]},
        "gone": {"images": [{"file_id": f"file-{'0' * 24}"}]},
        "none": {},
    }
    frame = {"method": "POST", "url": EDITS}
    lines = [
        json.dumps(
            {**frame, "custom_id": name, "body": {"prompt": "a star", "response_format": "b64_json", **FIELDS, **body}}
        )
        for name, body in bodies.items()
    ]
    file = client.files.create(file=("lines.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/images/edits", completion_window="24h")
    assert batch.endpoint == EDITS
    until(lambda: client.batches.retrieve(batch.id).status in {"completed", "failed"}, timeout_s=60)
    found = client.batches.retrieve(batch.id)
    assert found.status == "completed", found
    done = [json.loads(line) for line in client.files.content(str(found.output_file_id)).text.splitlines()]
    assert [line["custom_id"] for line in done] == ["whole", "part"]
    [entry] = done[1]["response"]["body"]["data"]
    assert difference(opened(entry["b64_json"]).crop(LEFT), SOURCE.crop(LEFT)) <= 2
    failed = [json.loads(line) for line in client.files.content(str(found.error_file_id)).text.splitlines()]
    problems = {line["custom_id"]: line["error"]["message"] for line in failed}
    assert problems.keys() == {"local", "gone", "none"}
    assert "is a file of your own machine" in problems["local"]
    assert "is no file of this server" in problems["gone"]
    assert "images null is missing; write the image to edit" in problems["none"]


WEB_UI: dict[str, Any] = {"prompt": "a (blue:1.2) circle", "steps": 6, "seed": 7}


def test_the_web_ui_paints_on_an_image(server: RunningServer, rendering: RunningWorker) -> None:
    assert rendering
    inputs = {"init_images": [b64encode(encode(SOURCE)).decode()], "denoising_strength": 0.5, "n_iter": 2}
    answer = server.client.post("/sdapi/v1/img2img", json={**WEB_UI, **inputs, "width": 128, "height": 64})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    first, second = map(opened, found["images"])
    assert first.size == (128, 64)
    assert first.tobytes() != second.tobytes()
    info = json.loads(found["info"])
    assert (info["denoising_strength"], info["all_seeds"]) == (0.5, [7, 8])
    assert "Denoising strength: 0.5" in info["infotexts"][0]
    assert "init_images" not in found["parameters"]


def test_the_web_uis_mask_is_inverted_if_it_wants_so(server: RunningServer, rendering: RunningWorker) -> None:
    assert rendering
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, RIGHT)
    inputs = {"init_images": [data_url(encode(SOURCE))], "mask": b64encode(encode(mask)).decode()}
    body = {**WEB_UI, **inputs, "mask_blur": 0, "denoising_strength": 1}
    for inverted, kept, painted in ((0, LEFT, RIGHT), (1, RIGHT, LEFT)):
        answer = server.client.post("/sdapi/v1/img2img", json={**body, "inpainting_mask_invert": inverted})
        assert answer.status_code == 200, answer.text
        made = opened(answer.json()["images"][0])
        assert difference(made.crop(kept), SOURCE.crop(kept)) <= 2
        assert difference(made.crop(painted), SOURCE.crop(painted)) > 2


def test_what_the_web_ui_sends_invalidly_is_refused(server: RunningServer, rendering: RunningWorker) -> None:
    assert rendering
    for body, problem in (
        ({}, "init_images has not one image"),
        ({"init_images": ["AAAA"]}, "is a file of your own machine"),
        ({"init_images": [data_url(b"x")]}, "is not an image of a known format"),
        ({"init_images": [data_url(encode(SOURCE))], "mask": "AAAA", "inpainting_mask_invert": 1}, "mask is a file of"),
        ({"init_images": [data_url(encode(image_of(61, 64)))]}, "its width is not in 64 to 2048"),
    ):
        answer = server.client.post("/sdapi/v1/img2img", json={**WEB_UI, **body})
        assert (answer.status_code, problem in answer.json()["detail"]) == (400, True), answer.text


def test_the_web_ui_has_a_second_stage_and_names_adapters(
    server: RunningServer, farm: Farm, rendering: RunningWorker
) -> None:
    assert rendering
    body = {**WEB_UI, "width": 64, "height": 64, "enable_hr": True, "hr_scale": 2, "hr_second_pass_steps": 4}
    answer = server.client.post("/sdapi/v1/txt2img", json={**body, "denoising_strength": 0.5})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert opened(found["images"][0]).size == (128, 128)
    info = json.loads(found["info"])
    assert info["denoising_strength"] == 0.5
    assert "Hires upscale: 2, Hires steps: 4, Hires upscaler: Latent" in info["infotexts"][0]
    [request] = requests_of(farm)
    assert (request["hires_scale"], request["hires_steps"], request["hires_strength"]) == (2, 4, 0.5)
    # this worker has no adapters, which the answer states
    unit = {"model": "edges", "module": "canny", "image": data_url(encode(SOURCE))}
    for named, problem in (
        ({"prompt": "a <lora:outlined:1> cat"}, "'outlined' is unknown"),
        ({"alwayson_scripts": {"controlnet": {"args": [unit]}}}, "controlnet 'edges' is unknown"),
    ):
        refused = server.client.post("/sdapi/v1/txt2img", json={**WEB_UI, **named})
        assert (refused.status_code, problem in refused.json()["detail"]) == (400, True), refused.text

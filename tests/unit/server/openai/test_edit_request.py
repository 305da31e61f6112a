"""Bodies of edits: forms and JSON."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.requests import Request

from latentfarm.inputs.resolver import StoredInput
from latentfarm.limits import MAX_SIDE, MIN_SIDE
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.openai.edit_inputs import nearest_size
from latentfarm.server.openai.edit_request import EditRequest, read_edit_request

pytestmark = pytest.mark.unit

Parts = list[tuple[str, bytes]]
BOUNDARY = "b0undary"
LIMIT = 2_000_000


def read(body: bytes, kind: str) -> EditRequest:
    waiting = [body[:100], body[100:]]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def run(function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    app = SimpleNamespace(state=SimpleNamespace(context=SimpleNamespace(run=run)))
    headers = [(b"content-type", kind.encode())]
    request = Request({"type": "http", "method": "POST", "headers": headers, "app": app}, receive)
    return asyncio.run(read_edit_request(request, LIMIT))


def form(*parts: tuple[str, bytes]) -> EditRequest:
    written = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        + (b'; filename="a.png"' if name.startswith(("image", "mask")) else b"")
        + b"\r\n\r\n"
        + content
        + b"\r\n"
        for name, content in parts
    )
    return read(written + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}")


def of_json(**body: Any) -> EditRequest:
    return read(json.dumps(body).encode(), "application/json")


PROMPT = ("prompt", b"a hat")


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_a_form_has_files_and_fields(name: str) -> None:
    texts = [("model", b"gpt-image-1"), ("n", b"2"), ("size", b"64x128"), ("stream", b"true"), ("partial_images", b"2")]
    ours = [
        ("strength", b"0.5"),
        ("loras[]", b"outlined:0.5"),
        ("loras[]", b"striped"),
        ("response_format", b"b64_json"),
    ]
    found = form(PROMPT, (name, b"PNG" * 100), ("mask", b"MASK"), *texts, *ours)
    assert found.files == {"image": b"PNG" * 100, "mask": b"MASK"}
    wanted = found.wanted
    assert (wanted.model, wanted.stream, wanted.partial_images) == ("gpt-image-1", True, 2)
    row = {name: value for name, value in wanted.row.items() if name not in {"image", "mask_image"}}
    assert [(lora.name, lora.scale) for lora in row.pop("loras")] == [("outlined", 0.5), ("striped", 1.0)]
    assert row == {"prompt": "a hat", "num_images_per_prompt": 2, "width": 64, "height": 128, "strength": 0.5}


def test_json_has_urls_and_ids_of_files() -> None:
    found = of_json(prompt="a hat", images=[{"image_url": "data:,x"}], mask={"file_id": "file-1"}, n=2)
    assert found.files == {"image": "data:,x", "mask": "file-1"}
    assert found.wanted.row["num_images_per_prompt"] == 2
    found = of_json(prompt="a hat", image="file-2", mask_image="https://example.org/m.png", strength=0.5)
    assert found.files == {"image": "file-2", "mask_image": "https://example.org/m.png"}
    assert found.wanted.row["strength"] == 0.5


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([PROMPT], "image is missing; send the image to edit"),
        ([PROMPT, ("image", b"")], "image is missing"),
        ([PROMPT, ("image", b"x"), ("image[]", b"y")], "image is there twice; send one, and a request for each image"),
        ([PROMPT, ("image", b"x"), ("mask", b"y"), ("mask_image", b"z")], "there are mask and mask_image; send one of"),
        ([PROMPT, PROMPT, ("image", b"x")], "prompt is there twice; send it once"),
        ([("prompt", b"\xff"), ("image", b"x")], "prompt is not UTF-8; encode it in UTF-8"),
        ([PROMPT, ("image", b"x"), ("strength", b"2")], "strength '2' is invalid; write less than or equal to 1"),
        ([PROMPT, ("image", b"x"), ("user", b"u" * 1_100_000)], "the form's texts are longer than 1,048,576 bytes"),
        ([PROMPT, ("image", b"x" * LIMIT)], "the body is longer than 2000000 bytes"),
    ],
)
def test_an_invalid_form_is_refused(parts: Parts, problem: str) -> None:
    with pytest.raises(RequestError) as refused:
        form(*parts)
    assert refused.value.message.startswith(problem)


def test_invalid_json_is_refused() -> None:
    for body, problem in (
        ({"images": [{"file_id": "a"}] * 2}, "images has 2 entries; send one, and a request for each image"),
        ({"images": [{"file_id": "a", "image_url": "b"}]}, "images has both image_url and file_id, or none"),
        ({"images": [{}]}, "images has both image_url and file_id, or none"),
        ({"image": 5}, "image is missing"),
    ):
        with pytest.raises(RequestError) as refused:
            of_json(prompt="a hat", **body)
        assert refused.value.message.startswith(problem)
    with pytest.raises(ValidationError):
        of_json(prompt="a hat", images="a")
    with pytest.raises(RequestError, match="send multipart/form-data"):
        read(b"x", "text/plain")


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([8, 16, 32, 64]))
def test_a_size_of_a_result_is_one_that_the_model_can_make(width: int, height: int, multiple: int) -> None:
    found = nearest_size(StoredInput("", width, height), multiple)
    assert all(MIN_SIDE <= side <= MAX_SIDE and side % multiple == 0 for side in found)
    if all(MIN_SIDE <= side <= MAX_SIDE for side in (width, height)):
        assert all(abs(side - own) <= multiple / 2 for side, own in zip(found, (width, height), strict=True))

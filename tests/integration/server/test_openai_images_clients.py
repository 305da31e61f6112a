"""Requests for images byte for byte as clients of OpenAI's API send them, rebuilt from the clients' sources."""

from __future__ import annotations

from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
from PIL import Image
from tests.support.client_requests import ClientRequest, client_requests
from tests.support.http_server import RunningServer, RunningWorker

pytestmark = pytest.mark.integration

#: client, request, number of images, size (None: the model's own) and format
RENDERED = (
    ("open-webui-openai", "generate", 1, (64, 64), "PNG"),
    ("open-webui-openai", "generate with parameters", 2, (64, 128), "PNG"),
    ("librechat-openai", "generate", 1, None, "WEBP"),
    ("litellm", "generate", 1, (64, 64), "PNG"),
    ("litellm", "generate with options", 1, None, "PNG"),
    ("vercel-ai-sdk", "generate", 1, (64, 64), "PNG"),
    ("vercel-ai-sdk", "generate with options", 2, None, "JPEG"),
    ("n8n-openai", "generate", 1, None, "PNG"),
    ("n8n-openai", "generate with options", 1, None, "PNG"),
)


def find(client: str, request: str) -> ClientRequest:
    return client_requests(client)[request]


def test_each_client_finds_its_images_where_it_reads_them(server: RunningServer, rendering: RunningWorker) -> None:
    assert rendering
    requests = [find(client, request) for client, request, *_ in RENDERED]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda request: request.send(server.url), requests))
    for (client, request, number, size, image_format), answer in zip(RENDERED, answers, strict=True):
        assert answer.status == 200, (client, request, answer.body)
        data = answer.json()["data"]
        # Vercel's schema and n8n's code take each entry's b64_json; no entry has a key of another kind
        assert [set(entry) for entry in data] == [{"b64_json"}] * number
        for entry in data:
            with Image.open(BytesIO(b64decode(entry["b64_json"], validate=True))) as image:
                assert size in {None, image.size}
                assert image.format == image_format
    urls = find("n8n-openai", "generate urls").send(server.url).json()["data"]
    assert [entry["url"][:4] for entry in urls] == ["http", "http"]


def test_clients_that_edit_images_read_what_is_invalid(server: RunningServer, rendering: RunningWorker) -> None:
    assert rendering
    for client in ("open-webui-openai", "librechat-openai"):
        answer = find(client, "edit").send(server.url)
        assert answer.status == 400
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["code"], error["type"]) == ("invalid_image", "invalid_request_error")

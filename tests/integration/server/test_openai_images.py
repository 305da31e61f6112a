"""OpenAI's images endpoint by its own client, over a real server and a real worker."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx2
import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse
from PIL import Image
from tests.support.http_server import RunningServer, RunningWorker

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import BatchState
from latentfarm.farm import Farm

pytestmark = pytest.mark.integration

SMALL = {"num_inference_steps": 4, "guidance_scale": 3}


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def opened(encoded: str | None) -> Image.Image:
    with Image.open(BytesIO(b64decode(encoded or ""))) as image:
        image.load()
        return image


def test_a_client_without_settings_gets_bytes(client: openai.OpenAI, farm: Farm, rendering: RunningWorker) -> None:
    answer = client.images.generate(prompt="a red circle", model="gpt-image-1", size="64x128", extra_body=SMALL)
    ImagesResponse.model_validate(answer.model_dump(), strict=True)
    assert [opened(entry.b64_json).size for entry in answer.data or []] == [(64, 128)]
    assert (answer.size, answer.output_format, answer.background) == ("64x128", "png", "opaque")
    assert answer.usage is not None
    assert answer.usage.output_tokens == 8 * 16
    assert answer.usage.input_tokens > 4
    assert answer.usage.total_tokens == answer.usage.input_tokens + 8 * 16
    (name,) = farm.ledger.batches(interactive=True)
    record = farm.ledger.batch(name)
    assert (record.kind, record.owner, record.state) == (BatchKind.INTERACTIVE, "local", BatchState.COMPLETE)

"""The text ``info``: what clients parse, also of files without parameters inside."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentfarm.server.a1111.info import info_text

pytestmark = pytest.mark.unit


def png(**texts: str) -> bytes:
    out, chunks = io.BytesIO(), PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=chunks)
    return out.getvalue()


def result(seed: int, **request: Any) -> dict[str, Any]:
    fields = {"prompt": "a cat", "seed": seed, "width": 512, "height": 768, "scheduler": "EulerDiscreteScheduler"}
    return {"job": f"b/{seed}", "model": "sd14", "model_digest": "0123456789abcdef", "request": fields | request}


def test_info_has_what_clients_read_of_every_image() -> None:
    images = [(png(parameters="one"), result(5, clip_skip=1)), (png(parameters="two"), result(6))]
    found = json.loads(info_text(images, batch_size=2, notes=["a note"]))
    assert found["infotexts"] == ["one", "two"]
    assert (found["seed"], found["all_seeds"], found["all_prompts"]) == (5, [5, 6], ["a cat", "a cat"])
    assert (found["width"], found["height"], found["sampler_name"], found["clip_skip"]) == (512, 768, "Euler", 2)
    assert (found["sd_model_name"], found["sd_model_hash"]) == ("sd14", "0123456789")
    assert found["notes"] == ["a note"]


def test_a_file_without_parameters_has_those_of_its_receipt() -> None:
    truncated = {**result(5, num_inference_steps=9, prompt_syntax="a1111"), "prompt_truncated": True}
    found = json.loads(info_text([(png(), truncated)], batch_size=1, notes=[]))
    assert found["infotexts"] == [
        "a cat\nSteps: 9, Sampler: Euler, Schedule type: Uniform, CFG scale: 7.5, Seed: 5, Size: 512x768, "
        "Model hash: 0123456789, Model: sd14, RNG: CPU, Job: b/5"
    ]
    assert found["notes"] == ["the prompt is longer than the model reads, so its end was ignored"]


def test_a_sampler_that_the_web_ui_lacks_has_its_own_name() -> None:
    images = [(png(parameters="one"), result(5, scheduler="TCDScheduler"))]
    assert json.loads(info_text(images, batch_size=1, notes=[]))["sampler_name"] == "TCDScheduler"

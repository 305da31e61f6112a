"""The script ControlNet of AUTOMATIC1111 in rows of prompts."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support import prompt_files

from latentfarm.submission.prompts import open_source

pytestmark = pytest.mark.unit


def scripts(*units: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"prompt": "a", "alwayson_scripts": {"controlnet": {"args": [*units]}, **others}}


def test_units_become_the_lists_of_a_row() -> None:
    edges = {
        "model": "edges [0123abcd]",
        "image": "iVBORw0KGgoA",
        "module": "canny",
        "weight": 0.5,
        "guidance_end": 0.8,
    }
    depth = {"model": "depth.safetensors", "input_image": "/9j/A", "pixel_perfect": True, "control_mode": "Balanced"}
    off = {"enabled": False, "model": "None"}
    [row] = prompt_files.rows_of(open_source([scripts(edges, off, depth, ADetailer={"args": [False]})]))
    assert prompt_files.given(row) == {
        "prompt": "a",
        "resize": "crop",
        "controlnet": ("edges", "depth"),
        "control_image": ("data:image/png;base64,iVBORw0KGgoA", "data:image/jpeg;base64,/9j/A"),
        "controlnet_conditioning_scale": (0.5, 1.0),
        "control_guidance_start": (0.0, 0.0),
        "control_guidance_end": (0.8, 1.0),
        "control_preprocessor": ("canny", "none"),
    }


UNIT = {"model": "edges", "image": "a.png"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (scripts(), None),
        (scripts({**UNIT, "model": "None"}), "has a ControlNet without a model; write a name of"),
        (scripts({**UNIT, "module": "depth_midas"}), "has the ControlNet module 'depth_midas', which is not supported"),
        (scripts({**UNIT, "control_mode": 2}), "has control_mode 2, which is not supported; write 0 (balanced)"),
        (scripts({**UNIT, "module": "canny", "threshold_a": 50}), "has threshold_a 50, which is not supported"),
        (scripts({**UNIT, "resize_mode": 7}), "is not supported; write 0 (stretch), 1 (crop) or 2 (pad)"),
        (scripts({**UNIT, "image": {"image": "a.png", "mask": "m.png"}}), "has a ControlNet with a mask"),
        (scripts({**UNIT, "advanced_weighting": [1]}), "has the ControlNet argument 'advanced_weighting'"),
        (scripts(UNIT, {"model": "edges"}), "has a ControlNet without an image; write image in each unit"),
        (scripts(UNIT, {**UNIT, "resize_mode": 2}), "has ControlNets with several resize modes; write one for all"),
        (scripts(ADetailer={"args": [True]}), "has 'ADetailer', which is not supported; remove it"),
        ({"prompt": "a", "alwayson_scripts": {"controlnet": {"args": ["x"]}}}, "has ControlNet without units"),
        ({"prompt": "a", "alwayson_scripts": "x"}, "is not an object; remove it"),
    ],
)
def test_what_is_not_supported_is_refused(row: dict[str, Any], problem: str | None) -> None:
    if problem is None:
        assert prompt_files.rows_of(open_source([row]))
        return
    [error] = prompt_files.errors_of(open_source([row]))
    assert error.text.startswith("row 1: alwayson_scripts ")
    assert problem in error.text

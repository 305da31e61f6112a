"""Fields of rows that belong together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.edit_fields import EDIT_FIELDS, LoraUse
from latentfarm.errors import InputError
from latentfarm.job import Defaults, Row
from latentfarm.model_facts import ModelFacts
from latentfarm.step_counts import steps_made
from latentfarm.submission.edit_rows import check_edits, count_steps
from latentfarm.submission.prompts import Notes, RowError
from latentfarm.submission.request import make_request

pytestmark = pytest.mark.unit

FLOW = ModelFacts(pipeline="FluxPipeline", model_digest="", native_width=64, native_height=64, flow=True)


def check(fields: dict[str, Any], defaults: dict[str, Any], facts: ModelFacts | None = None) -> list[str]:
    notes = Notes()
    check_edits(Row(prompt="a cat", **fields), Defaults(**defaults), facts, notes)
    return list(notes)


@pytest.mark.parametrize(
    ("fields", "defaults", "problem"),
    [
        ({"strength": 0.5}, {}, "strength 0.5 has no image; write image, or remove it"),
        ({"mask_image": "m.png"}, {}, "mask_image has no image; write image, or remove the mask"),
        ({"mask_blur": 4, "image": "a.png"}, {}, "mask_blur 4 has no mask_image; write mask_image, or remove it"),
        ({"resize": "crop"}, {}, "resize 'crop' has no image or control_image"),
        ({"controlnet": "edges"}, {}, "controlnet has no control_image; write both"),
        ({"control_image": "a.png"}, {}, "control_image has no controlnet; write both"),
        ({"ip_adapter": "plus"}, {}, "ip_adapter has no ip_adapter_image; write both"),
        ({"controlnet_conditioning_scale": 0.5}, {}, "controlnet_conditioning_scale [0.5] has no controlnet"),
        ({"hires_steps": 5}, {}, "hires_steps 5 has no hires_scale"),
        (
            {"hires_scale": 3},
            {"width": 1024},
            "hires_scale 3 makes a width of 1024 pixels 3072, more than 2048; write 2 or",
        ),
        ({"hires_scale": 2, "mask_image": "m.png", "image": "a.png"}, {}, "hires_scale paints all of an image again"),
        ({"refiner_start": 0.5}, {}, "refiner_start 0.5 has no refiner; write refiner, or remove it"),
        ({"refiner": "fine", "image": "a.png"}, {}, "refiner ends a run of one size that begins with noise, and there"),
        ({"hires_scale": 2}, {"refiner": "fine"}, "refiner ends a run of one size that begins with noise, and there"),
        ({"loras": "a,b:0.5,a"}, {}, "loras has a twice; write it once"),
        (
            {"controlnet": "edges", "control_image": "a.png", "control_guidance_start": 0.5},
            {"control_guidance_end": 0.4},
            "control_guidance_start 0.5 is not before control_guidance_end 0.4",
        ),
        (
            {"control_image": "a.png,b.png", "control_guidance_end": "1,0.2"},
            {"controlnet": "edges,depth", "control_guidance_start": "0,0.2"},
            "control_guidance_start 0.2 is not before control_guidance_end 0.2",
        ),
        (
            {"control_image": "a.png", "controlnet_conditioning_scale": "1,2,3"},
            {"controlnet": "edges,depth"},
            "controlnet_conditioning_scale has 3 entries and controlnet has 2; write one for each, or one for all",
        ),
        ({"image": "a.png", "strength": 0.03}, {}, "strength 0.03 of 25 steps makes no step; write 0.04 or more"),
        ({"image": "a.png"}, {"num_inference_steps": 1}, "strength 0.8 of 1 step makes no step; write 1 or more"),
        ({"hires_scale": 2, "hires_steps": 1}, {}, "hires_strength 0.7 of 1 step makes no step"),
    ],
)
def test_fields_that_do_not_fit_are_an_error(fields: dict[str, Any], defaults: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        check(fields, defaults)
    assert str(caught.value).startswith(problem)
    assert caught.value.field in EDIT_FIELDS


@pytest.mark.parametrize(
    ("fields", "defaults"),
    [
        ({}, {}),
        ({"image": "a.png"}, {"strength": 0.5, "mask_image": "m.png", "mask_blur": 4}),
        ({"control_image": ["a.png", "b.png"]}, {"controlnet": "edges,depth", "control_preprocessor": "canny"}),
        ({"control_image": "a.png"}, {"controlnet": "edges", "resize": "pad"}),
        ({"refiner_start": 0.5}, {"refiner": "fine"}),
        ({"image": "a.png"}, {"num_inference_steps": 1, "strength": 1}),
    ],
)
def test_a_row_and_its_defaults_may_have_a_part_each(fields: dict[str, Any], defaults: dict[str, Any]) -> None:
    assert check(fields, defaults) == []


def test_a_default_without_effect_on_a_row_is_noted() -> None:
    assert check({}, {"strength": 0.5}) == ["the default of strength has no effect on rows without image"]
    assert check({}, {"resize": "crop"}) == [
        "the default of resize has no effect on rows without image and control_image"
    ]


def test_a_model_of_flow_matching_rounds_steps_up() -> None:
    assert check({"image": "a.png", "strength": 0.01}, {}, FLOW) == []
    assert steps_made(25, 0.3) == 7
    assert steps_made(25, 0.3, flow=True) == 8


@given(steps=st.integers(1, 500), strength=st.floats(0.001, 1), flow=st.booleans())
def test_steps_on_an_image_are_part_of_the_steps(*, steps: int, strength: float, flow: bool) -> None:
    made = steps_made(steps, strength, flow=flow)
    assert 0 <= made <= steps
    assert abs(made - steps * strength) < 1
    assert steps_made(steps, 1, flow=flow) == steps


def test_steps_are_counted_with_those_of_the_second_stage() -> None:
    assert count_steps({"num_inference_steps": 20, "strength": 0.5}) == (20, 0)
    assert count_steps({"num_inference_steps": 20, "image": "a", "strength": 0.5}) == (10, 0)
    assert count_steps({"num_inference_steps": 20, "image": "a", "mask_image": "m"}) == (20, 0)
    assert count_steps({"num_inference_steps": 20, "hires_scale": 2}) == (20, 14)
    assert count_steps({"num_inference_steps": 20, "hires_scale": 2, "hires_steps": 10, "hires_strength": 0.5}) == (
        20,
        5,
    )


def test_an_invalid_row_has_its_place_and_field() -> None:
    request = make_request([{"prompt": "a cat", "strength": 0.5}], model="mini")
    [(number, found)] = request.rows()
    assert number == 0
    assert found == RowError("row 1: strength 0.5 has no image; write image, or remove it", "strength")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("outlined", {"name": "outlined", "scale": 1}),
        ("outlined:0.5@0", {"name": "outlined", "scale": 0.5}),
        ("a@b:-0.5@0.25", {"name": "a@b", "scale": -0.5, "start": 0.25}),
    ],
)
def test_a_lora_is_stored_with_its_start_if_it_has_one(text: str, fields: dict[str, Any]) -> None:
    lora = LoraUse.model_validate(text)
    assert lora.model_dump() == fields
    assert LoraUse.model_validate(fields) == lora
    assert Row(prompt="a", loras=text).model_dump(mode="json")["loras"] == [fields]


@pytest.mark.parametrize("text", ["outlined:1@1", "outlined:1@-0.1", "outlined:1@", "outlined:1@nan", "outlined:@0.5"])
def test_a_start_is_a_share_of_the_steps(text: str) -> None:
    with pytest.raises(ValueError, match=r"start|scale"):
        LoraUse.model_validate(text)

"""Rows and defaults against what workers have announced of their model."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.image_sources import data_url

from latentfarm.errors import InputError
from latentfarm.job import Defaults, Row
from latentfarm.limits import MAX_SIDE, MIN_SIDE
from latentfarm.model_facts import ModelFacts
from latentfarm.submission.edit_rows import check_edits
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.model_fit import misfits
from latentfarm.submission.prompts import Notes, RowError
from latentfarm.submission.request import Request, make_request

pytestmark = pytest.mark.unit

IMAGE, MASK = data_url(), data_url(255, mode="L")


def facts(**changed: Any) -> ModelFacts:
    known = {"pipeline": "FluxPipeline", "model_digest": "ab12", "native_width": 1024, "native_height": 1024}
    return ModelFacts.model_validate({**known, "pixel_multiple": 16, "flow": True, **changed})


def rows(request: Request, known: ModelFacts | None) -> list[Row | RowError]:
    return [row for _, row in request.with_facts(known).rows()]


@given(side=st.integers(MIN_SIDE // 8, MAX_SIDE // 8).map(lambda n: 8 * n), multiple=st.sampled_from([8, 16, 32, 64]))
def test_the_sides_of_the_cure_fit_and_are_the_nearest(side: int, multiple: int) -> None:
    found = misfits(Row(prompt="a", height=side), facts(pixel_multiple=multiple))

    assert bool(found) == bool(side % multiple)
    for field, text in found:
        assert field == "height"
        cures = [int(each) for each in re.findall(r"\d+", text.partition("write ")[2])]
        assert cures
        for cure in cures:
            assert cure % multiple == 0
            assert MIN_SIDE <= cure <= MAX_SIDE
            assert misfits(Row(prompt="a", height=cure), facts(pixel_multiple=multiple)) == []
        assert len(cures) == sum(MIN_SIDE <= side + off <= MAX_SIDE for off in (-(side % multiple), -side % multiple))
        assert max(abs(side - cure) for cure in cures) < multiple


def test_a_refiner_is_refused_for_other_models_and_by_unknown_names() -> None:
    row, xl = Row(prompt="a", refiner="fine"), {"pipeline": "StableDiffusionXLPipeline"}
    text = "refiner has no use: FluxPipeline takes none; remove it, or use a model of Stable Diffusion XL"
    assert misfits(row, facts()) == [("refiner", text)]
    assert misfits(row, facts(**xl)) == misfits(row, facts(**xl, adapters={"refiner": ("fine",)})) == []
    unknown = "refiner 'fine' is unknown; write other"
    assert misfits(row, facts(**xl, adapters={"refiner": ("other",)})) == [("refiner", unknown)]


def test_an_input_that_the_model_does_not_take_is_refused_with_its_cure() -> None:
    row = Row(prompt="a", image="in.png", mask_image="mask.png")
    found = misfits(row, facts(inputs=("image",)))
    assert found == [
        ("mask_image", "mask_image has no use: FluxPipeline takes none; remove it, or use a model that can")
    ]
    assert misfits(row, facts(inputs=("image", "mask_image"))) == misfits(row, facts()) == []
    assert misfits(Row(prompt="a"), facts(inputs=())) == []


def test_a_row_without_an_input_that_the_model_needs_is_refused() -> None:
    known = facts(inputs=("image", "mask_image"), required_inputs=("image", "mask_image"))
    fits, notes = Row(prompt="a", image="in.png", mask_image="mask.png"), Notes()
    with pytest.raises(InputError, match="mask_image is missing, and the model only paints parts of images"):
        check_edits(Row(prompt="a", image="in.png"), Defaults(), known, notes)
    check_edits(fits, Defaults(), known, notes)
    check_edits(Row(prompt="a"), Defaults(image="in.png", mask_image="mask.png"), known, notes)


def test_a_side_between_two_multiples_has_line_field_value_and_both_cures() -> None:
    request = make_request([{"prompt": "a"}, {"prompt": "b", "width": 1032, "height": 1000, "id": "own"}], model="m")

    fits, error = rows(request, facts())

    assert isinstance(fits, Row)
    assert isinstance(error, RowError)
    assert error.text == (
        "row 2: width 1032 is not a multiple of 16; write 1024 or 1040\n"
        "row 2: height 1000 is not a multiple of 16; write 992 or 1008"
    )
    assert (error.reason, error.id) == ("width", "own")


def test_without_announced_facts_nothing_is_checked() -> None:
    request = make_request([{"prompt": "a", "width": 1032, "scheduler": "flow_euler", "clip_skip": 9}], model="m")

    assert [type(row) for row in rows(request, None)] == [Row]


@pytest.mark.parametrize(
    ("name", "flow"),
    [("ddim", True), ("euler_a", True), ("euler", True), ("lcm", True), ("flow_euler", False), ("flow_heun", False)],
)
def test_a_scheduler_of_the_other_kind_of_model_is_refused_with_those_that_fit(*, name: str, flow: bool) -> None:
    [error] = rows(make_request([{"prompt": "a", "scheduler": name}], model="m"), facts(flow=flow))

    assert isinstance(error, RowError)
    assert error.text.startswith(f"row 1: scheduler '{name}': ")
    assert error.reason == "scheduler"
    wanted = "flow_euler" if flow else "ddim"
    assert wanted in error.text.partition("write one of ")[2]


@pytest.mark.parametrize(("name", "flow"), [("flow_euler", True), ("dpm++2m", True), ("ddim", False), ("unipc", False)])
def test_a_scheduler_that_fits_is_accepted(*, name: str, flow: bool) -> None:
    [row] = rows(make_request([{"prompt": "a", "scheduler": name}], model="m"), facts(flow=flow))

    assert isinstance(row, Row)


def test_more_skipped_layers_than_the_text_encoder_has_are_refused() -> None:
    request = make_request([{"prompt": "a", "clip_skip": skip} for skip in (2, 3)], model="m")

    fits, error = rows(request, facts(max_clip_skip=2))
    _, without = rows(request, facts(max_clip_skip=0))

    assert isinstance(fits, Row)
    assert isinstance(error, RowError)
    assert error.text == "row 2: clip_skip 3 leaves too little of the text encoder; write 0 to 2"
    assert isinstance(without, RowError)
    assert without.text == "row 2: clip_skip 3 leaves too little of the text encoder; write 0"


def test_a_default_that_does_not_fit_is_one_error_of_the_options() -> None:
    request = make_request(["a", "b"], model="m", width=1032)

    with pytest.raises(
        InputError, match=r"^options: width 1032 is not a multiple of 16; write 1024 or 1040$"
    ) as caught:
        request.with_facts(facts())
    assert caught.value.field == "width"


def test_each_expanded_row_is_checked() -> None:
    request = make_request(["a"], model="m", expansion=Expansion.parse(["width=1024,1032"]))

    fits, error = rows(request, facts())

    assert isinstance(fits, Row)
    assert isinstance(error, RowError)
    assert error.text == "row 1: width 1032 is not a multiple of 16; write 1024 or 1040"


def test_the_digest_of_a_request_does_not_depend_on_facts() -> None:
    request = make_request(["a"], model="m")

    assert request.with_facts(facts()).digest == request.digest
    assert request.with_facts(facts()).name == request.name


@pytest.mark.parametrize(
    ("safety", "announced", "fits"),
    [
        ("score", False, False),
        ("refuse", False, False),
        ("off", False, True),
        (None, False, True),
        ("score", True, True),
        ("score", None, True),
    ],
)
def test_a_row_that_is_to_be_checked_needs_a_checker(safety: Any, *, announced: bool | None, fits: bool) -> None:
    found = misfits(Row(prompt="a", safety=safety), facts(safety_checker=announced))
    assert (found == []) == fits
    for field, text in found:
        assert field == "safety"
        assert "no safety checker; set LATENTFARM_SAFETY_CHECKER for them, or write off" in text


@pytest.mark.parametrize(
    ("named", "announced", "wrong"),
    [
        (("sharpness", "clip"), ("sharpness", "clip"), []),
        (("clip", "sharpness", "clip"), ("sharpness", "phash"), ["clip"]),
        (("clip",), None, []),
        (None, ("sharpness",), []),
    ],
)
def test_scorers_of_a_row_are_those_of_the_workers(named: Any, announced: Any, wrong: list[str]) -> None:
    found = misfits(Row(prompt="a", scorers=named), facts(scorers=announced))
    assert found == [
        ("scorers", f"scorer {name!r} is unknown: the model's workers have sharpness, phash; write one of them")
        for name in wrong
    ]

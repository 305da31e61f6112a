"""What workers announce of their model, as JSON in the ledger, which others may be able to write to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.limits import MAX_GUIDANCE, MAX_STEPS
from latentfarm.model_facts import ModelFacts, model_defaults

pytestmark = pytest.mark.unit

FIELDS: dict[str, Any] = {
    "pipeline": "FluxPipeline",
    "model_digest": "ab12",
    "native_width": 1024,
    "native_height": 1024,
}

facts = st.builds(
    ModelFacts,
    pipeline=st.text(max_size=200),
    model_digest=st.text(max_size=200),
    licence=st.text(max_size=200),
    native_width=st.integers(1, 2048),
    native_height=st.integers(1, 2048),
    pixel_multiple=st.integers(1, 2048),
    num_inference_steps=st.integers(1, MAX_STEPS),
    guidance_scale=st.floats(0, MAX_GUIDANCE),
    embeds_guidance=st.booleans(),
    flow=st.booleans(),
    max_prompt_tokens=st.integers(1, 10_000),
    max_clip_skip=st.integers(0, 30),
    safety_checker=st.none() | st.booleans(),
    scorers=st.none() | st.just(("sharpness", "clip")),
)


@given(facts)
def test_facts_are_read_as_they_were_written(announced: ModelFacts) -> None:
    assert ModelFacts.parse(announced.model_dump_json()) == announced


@given(st.one_of(st.binary(), st.text(), st.recursive(st.none() | st.integers(), st.lists).map(json.dumps)))
def test_what_is_no_facts_counts_as_none(text: str | bytes) -> None:
    assert ModelFacts.parse(text) is None


@pytest.mark.parametrize(
    "bad",
    [
        {"num_inference_steps": 0},
        {"num_inference_steps": 1_000_000},
        {"guidance_scale": -1},
        {"guidance_scale": float("nan")},
        {"pixel_multiple": 0},
        {"native_width": 0},
        {"licence": "x" * 201},
    ],
)
def test_values_that_no_job_may_have_count_as_none(bad: dict[str, Any]) -> None:
    assert ModelFacts.parse(json.dumps({**FIELDS, **bad})) is None


def test_a_newer_worker_may_announce_more() -> None:
    found = ModelFacts.parse(json.dumps({**FIELDS, "edits": True}))

    assert found == ModelFacts(**FIELDS)


def test_an_unknown_model_has_25_steps_and_a_scale_of_7_5() -> None:
    assert model_defaults(None) == {"num_inference_steps": 25, "guidance_scale": 7.5}
    assert model_defaults(ModelFacts(**FIELDS, num_inference_steps=4, guidance_scale=0)) == {
        "num_inference_steps": 4,
        "guidance_scale": 0.0,
    }

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from latentfarm.errors import InputError
from latentfarm.job import Job, Row, default_seed
from latentfarm.job_state import ALLOWED_MOVES, TERMINAL_STATES, JobState
from latentfarm.names import check_batch_name, parse_job_name

pytestmark = pytest.mark.unit


def test_only_a_user_moves_a_job_out_of_a_terminal_state() -> None:
    assert {move for move in ALLOWED_MOVES if move[0] in TERMINAL_STATES} == {
        (JobState.FAILED, JobState.PENDING),
        (JobState.DRAFTED, JobState.PENDING),
        (JobState.DRAFTED, JobState.CANCELLED),
    }


@given(st.text("abc", min_size=1), st.integers(0, 10**8))
def test_a_default_seed_depends_on_batch_and_index_only(batch: str, index: int) -> None:
    assert default_seed(batch, index) == default_seed(batch, index)
    assert 0 <= default_seed(batch, index) < 2**32


@pytest.mark.parametrize(
    "invalid",
    [
        {"width": 1030},
        {"height": 56},
        {"height": 2056},
        {"num_inference_steps": 0},
        {"num_inference_steps": 501},
        {"num_inference_steps": True},
        {"guidance_scale": float("nan")},
        {"guidance_scale": -1},
        {"guidance_interval": [0.5, 0.5]},
        {"guidance_interval": [0, 1.1]},
        {"guidance_interval": [0.5]},
        {"guidance_interval": "0.5"},
        {"guidance_interval": "nan..1"},
        {"seed": -1},
        {"seed": 2**63},
        {"prompt": "x" * 4097},
        {"prompt": "\N{THAI CHARACTER KO KAI}" * 1366},
        {"prompt": "\ud800"},
        {"prompt": "a\0b"},
        {"id": "\ud800"},
        {"columns": {"a": "\ud800"}},
        {"columns": {"a": float("inf")}},
        {"columns": {"a": "x" * 16_384}},
        {"columns": {str(n): n for n in range(65)}},
        {"scheduler": "eulr"},
        {"image_format": "gif"},
        {"image_format": "PNG"},
        {"scheduler_options": {"__class__": 1}},
        {"scheduler_options": {"a": [1]}},
        {"scheduler_options": {"a": float("nan")}},
        {"prompt_syntax": "A1111"},
        {"clip_skip": -1},
        {"clip_skip": 23},
        {"clip_skip": True},
        {"id": ""},
        {"num_images_per_prompt": 0},
        {"custom_pipeline": "evil/repo"},
    ],
)
def test_a_field_beyond_its_limit_is_refused_in_rows_and_in_jobs(invalid: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Row(**{"prompt": "a", **invalid})
    with pytest.raises(ValidationError):
        Job(**{"batch": "b", "index": 0, "prompt": "a", "seed": 0, **invalid})


def test_the_error_for_an_unknown_scheduler_does_not_depend_on_spaces_in_its_name() -> None:
    with pytest.raises(ValidationError, match=r"Value error, is not known; did you mean 'dpm\+\+2m-karras'\?"):
        Row(prompt="a", scheduler="dpm++ 2m karas")


def test_a_request_has_rare_fields_only_if_they_differ_from_their_defaults() -> None:
    plain = Job(batch="b", index=0, prompt="a", seed=0, prompt_syntax="plain", clip_skip=0)
    assert plain.request().keys().isdisjoint({"prompt_syntax", "clip_skip"})
    request = plain.model_copy(update={"prompt_syntax": "a1111", "clip_skip": 2}).request()
    assert (request["prompt_syntax"], request["clip_skip"]) == ("a1111", 2)


@pytest.mark.parametrize("written", ["sharpness, clip", ["sharpness", "clip"]])
def test_scorers_are_names_or_text_with_commas(written: object) -> None:
    assert Row.model_validate({"prompt": "a", "scorers": written}).scorers == ("sharpness", "clip")


@pytest.mark.parametrize("draft", [-1, 1.5, 501, True, "nan", "100%", "-5%", "x%", "%", "1.5"])
def test_a_draft_is_a_share_or_a_number_of_steps(draft: object) -> None:
    with pytest.raises(ValidationError, match="draft"):
        Row.model_validate({"prompt": "a", "draft": draft})


@pytest.mark.parametrize(
    ("draft", "expected"), [("30%", 0.3), (" 12.5 %", 0.125), ("0.3", 0.3), ("8", 8), ("0%", 0), (0, 0)]
)
def test_a_draft_may_be_a_percentage(draft: object, expected: float) -> None:
    assert Row.model_validate({"prompt": "a", "draft": draft}).draft == expected


def test_a_draft_does_not_determine_the_image() -> None:
    job = Job(batch="b", index=0, prompt="a", seed=0)
    assert job.model_copy(update={"draft": 0.3, "scorers": ("sharpness",)}).request() == job.request()


def test_jpg_means_jpeg_and_the_default_is_png() -> None:
    job = {"batch": "b", "index": 0, "prompt": "a", "seed": 0}
    assert Row(prompt="a", image_format="jpg").image_format == "jpeg"
    assert Job(**job, image_format="jpg").image_format == "jpeg"
    assert Job(**job).image_format == "png"
    assert Row(prompt="a").given() == {"prompt": "a"}


@given(st.text(max_size=80))
def test_an_accepted_batch_name_is_safe_in_a_key(name: str) -> None:
    try:
        check_batch_name(name)
    except InputError:
        return
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
    assert 1 <= len(name) <= 64


@given(st.integers(0, 10**9))
def test_a_job_name_is_parsed_into_batch_and_index(index: int) -> None:
    assert parse_job_name(f"cats/{index}") == ("cats", index)


@pytest.mark.parametrize("name", ["cats", "cats/", "cats/x", "cats/-1", "/1", "cats/\N{SUPERSCRIPT TWO}", "Cats/1"])
def test_an_invalid_job_name_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        parse_job_name(name)


@pytest.mark.parametrize("written", ["0.25..0.5", [0.25, 0.5], (0.25, 0.5)])
def test_a_guidance_interval_is_two_shares_or_text(written: object) -> None:
    job = Job.model_validate({"batch": "b", "index": 0, "prompt": "p", "seed": 1, "guidance_interval": written})
    assert (job.guidance_interval, job.rows_per_step) == ((0.25, 0.5), 1.25)
    assert Job.model_validate_json(job.model_dump_json()) == job
    assert job.request()["guidance_interval"] == (0.25, 0.5)


def test_a_request_without_a_guidance_interval_has_no_field_for_it() -> None:
    assert "guidance_interval" not in Job(batch="b", index=0, prompt="p", seed=1).request()


def test_states_have_the_bytes_of_the_ledger() -> None:
    assert [state.value for state in JobState] == [0, 1, 2, 3, 4, 5]

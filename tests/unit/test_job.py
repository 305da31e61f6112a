from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from latentfarm.errors import InputError
from latentfarm.job import (
    ALLOWED_MOVES,
    MAX_SEED,
    TERMINAL_STATES,
    Defaults,
    Job,
    JobState,
    Row,
    check_batch_name,
    jobs_of,
    parse_job_name,
    seed_for,
)

pytestmark = pytest.mark.unit


def test_no_move_leads_out_of_a_terminal_state() -> None:
    assert not {before for before, _ in ALLOWED_MOVES} & TERMINAL_STATES


def test_a_rows_own_field_wins_over_the_batchs_default() -> None:
    row = Row(prompt="a", width=128).with_defaults(Defaults(width=64, height=64))
    assert (row.width, row.height) == (128, 64)


def test_images_per_prompt_makes_that_many_jobs_with_rising_seeds() -> None:
    jobs = jobs_of(Row(prompt="a", seed=7, num_images_per_prompt=3, id="x"), batch="b", row_number=2, first_index=5)
    assert [(job.index, job.seed, job.row, job.id) for job in jobs] == [(5, 7, 2, "x"), (6, 8, 2, "x"), (7, 9, 2, "x")]


@given(st.text("abc", min_size=1), st.integers(0, 10**8))
def test_a_seed_not_given_depends_on_batch_and_index_only(batch: str, index: int) -> None:
    seeds = [
        jobs_of(Row(prompt=prompt), batch=batch, row_number=row, first_index=index)[0].seed
        for row, prompt in enumerate(("one", "another"))
    ]
    assert seeds == [seed_for(batch, index)] * 2
    assert 0 <= seeds[0] < 2**32


def test_the_last_seed_is_followed_by_zero() -> None:
    jobs = jobs_of(Row(prompt="a", seed=MAX_SEED, num_images_per_prompt=2), batch="b", row_number=0, first_index=0)
    assert [job.seed for job in jobs] == [MAX_SEED, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 1030},
        {"height": 56},
        {"height": 2056},
        {"num_inference_steps": 0},
        {"num_inference_steps": 501},
        {"num_inference_steps": True},
        {"guidance_scale": float("nan")},
        {"guidance_scale": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"prompt": "x" * 4097},
        {"prompt": "\N{THAI CHARACTER KO KAI}" * 1366},
        {"prompt": "\ud800"},
        {"scheduler": "eulr"},
        {"scheduler_options": {"__class__": 1}},
        {"scheduler_options": {"a": [1]}},
        {"id": ""},
        {"num_images_per_prompt": 0},
        {"custom_pipeline": "evil/repo"},
    ],
)
def test_a_row_beyond_a_limit_is_refused_by_producer_and_worker_alike(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Row(**{"prompt": "a", **wrong})
    with pytest.raises(ValidationError):
        Job(**{"batch": "b", "index": 0, "prompt": "a", "seed": 0, **wrong})


@given(st.text(max_size=80))
def test_a_batch_name_is_refused_or_safe_in_a_key(name: str) -> None:
    try:
        check_batch_name(name)
    except InputError:
        return
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
    assert 1 <= len(name) <= 64


@given(st.integers(0, 10**9))
def test_a_job_name_is_read_back(index: int) -> None:
    assert parse_job_name(f"cats/{index}") == ("cats", index)


@pytest.mark.parametrize("name", ["cats", "cats/", "cats/x", "cats/-1", "/1", "cats/\N{SUPERSCRIPT TWO}", "Cats/1"])
def test_a_wrong_job_name_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        parse_job_name(name)


def test_states_have_the_bytes_that_the_ledger_holds() -> None:
    assert [state.value for state in JobState] == [0, 1, 2, 3, 4]

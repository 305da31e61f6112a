"""Images of SD3, FLUX.1 and Chroma have the same bytes alone and in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.company import FLOW_SCHEDULERS, render_in_company
from tests.support.engines import make, render_alone
from tests.support.tiny import make_tiny

from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

#: schedulers of one and of two evaluations a step, with and without noise; guidance of one and of two rows; two sizes
JOBS = [
    make(0, guidance_scale=4.0),
    make(0, scheduler="flow_heun", guidance_scale=1.0),
    make(0, scheduler="dpm++2m-sde", width=96, height=64),
    make(0, scheduler="flow_euler", scheduler_options={"stochastic_sampling": True}, num_inference_steps=5),
]


class Subject(NamedTuple):
    """A model, and the bytes of ``JOBS`` alone."""

    folder: Path
    family: Any
    alone: list[bytes]


@pytest.fixture(scope="module", params=["sd3", "flux", "schnell", "chroma"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = make_tiny(tmp_path_factory.mktemp("models") / request.param, kind=request.param)
    family = load(folder)
    return Subject(folder, family, [render_alone(family, job) for job in JOBS])


def load(folder: Path) -> Any:
    return load_family(folder, dtype=torch.float32, device=torch.device("cpu"))


@settings(max_examples=5, deadline=None)
@given(which=st.integers(0, len(JOBS) - 1), seed=st.integers(0, 2**32), company=st.integers(1, 6))
def test_the_same_bytes_alone_and_in_any_company(subject: Subject, which: int, seed: int, company: int) -> None:
    wanted = subject.alone[which]
    got = render_in_company(subject.family, JOBS[which], seed=seed, company=company, schedulers=FLOW_SCHEDULERS)
    assert got == wanted


def test_the_same_bytes_by_a_model_that_is_loaded_again(subject: Subject) -> None:
    assert len({*subject.alone}) == len(JOBS)
    again = load(subject.folder)
    assert again.model_digest == subject.family.model_digest
    assert [render_alone(again, job) for job in JOBS] == subject.alone

"""A request whose scheduler is written out: the same before the job is rendered and after."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.job import Job
from latentfarm.schedulers import CLASS_NAMES, SHORT_NAMES, fit, resolve, write_out

pytestmark = pytest.mark.unit


@given(st.sampled_from(sorted(SHORT_NAMES)), st.dictionaries(st.sampled_from(["solver_order", "other"]), st.integers()))
def test_a_short_name_becomes_its_class_and_options_below_those_of_the_request(name: str, own: dict[str, Any]) -> None:
    request = {"prompt": "a cat", "scheduler": name, "scheduler_options": own}
    found = write_out(request)
    assert found["scheduler"] in CLASS_NAMES
    assert found["scheduler_options"] == {**SHORT_NAMES[name].options, **own}
    assert write_out(found) == found
    assert {**found, "scheduler": name, "scheduler_options": own} == request


@given(st.sampled_from(sorted(SHORT_NAMES)))
def test_what_is_written_out_is_a_job(name: str) -> None:
    job = Job(batch="cats", index=0, prompt="a cat", seed=1, scheduler=name)
    assert Job(batch="cats", index=0, **write_out(job.request())).scheduler in CLASS_NAMES


@pytest.mark.parametrize("request_", [{}, {"scheduler": "DDIMScheduler"}, {"scheduler": "of a later version"}])
def test_what_is_no_short_name_stays(request_: dict[str, Any]) -> None:
    assert write_out(request_) is request_


def test_a_schedule_replaces_that_of_the_models_own_config_however_it_is_written() -> None:
    own = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_beta_sigmas": True}
    short = fit(resolve("flow_euler-karras"), own)
    assert short.options["use_beta_sigmas"] is False
    written_out = fit(resolve("FlowMatchEulerDiscreteScheduler"), own, {"use_karras_sigmas": True})
    assert written_out.options == {"use_beta_sigmas": False}
    assert fit(resolve("flow_euler"), own).options == {}
    # a solver with the noise levels of flow matching has no others
    assert fit(resolve("unipc"), own).options["use_beta_sigmas"] is False

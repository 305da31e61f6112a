from __future__ import annotations

import pytest

from latentfarm.job_state import JobState
from latentfarm.recovery.bucket_scan import derive_states

pytestmark = pytest.mark.unit


def test_a_job_with_an_image_is_done_even_if_it_failed_before() -> None:
    states = derive_states(range(1000, 1004), done={1000, 1001}, failed={1001, 1002})
    assert states == [JobState.DONE, JobState.DONE, JobState.FAILED, JobState.PENDING]

"""A worker calls Redis rarely, because one Redis serves the farm: it leases and commits several jobs at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from tests.conftest import until
from tests.support.rendering import images, render_loop, submit

from latentfarm import Farm
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.records import CommitOutcome
from latentfarm_worker.models import Family

pytestmark = pytest.mark.integration

JOBS = 12


class CountingLedger(Ledger):
    """The real ledger, which records its calls; the first commit waits until ``until_stored`` images are stored."""

    def __init__(self, farm: Farm, *, until_stored: int = 0) -> None:
        super().__init__(farm.ledger.redis, where=farm.ledger.where)
        self.farm = farm
        self.until_stored = until_stored
        self.committed: list[int] = []
        self.committed_s: list[float] = []
        self.leased: list[int] = []

    def commit(self, finished: Sequence[tuple[Lease, dict[str, Any]]]) -> list[CommitOutcome]:
        self.committed.append(len(finished))
        self.committed_s.append(time.monotonic())
        until(lambda: len(images(self.farm)) >= self.until_stored)
        return super().commit(finished)

    def lease(self, *args: Any, **options: Any) -> list[Lease]:
        leases = super().lease(*args, **options)
        self.leased.append(len(leases))
        return leases


def test_images_stored_during_a_commit_are_committed_together_by_the_next(farm: Farm, family: Family) -> None:
    batch = submit(farm, JOBS)
    ledger = CountingLedger(farm, until_stored=JOBS)
    with render_loop(farm, family, ledger=ledger) as loop:
        assert loop.render_all() == JOBS
        assert batch.wait(timeout_s=30).done == JOBS
    # the last image may be in the bucket, but not yet queued for the commit
    assert len(ledger.committed) <= 3
    assert sum(ledger.committed) == JOBS


def test_a_worker_makes_one_commit_a_second_and_four_more_at_first(farm: Farm, family: Family) -> None:
    # it renders many more images a second
    batch = submit(farm, 3 * JOBS, num_inference_steps=1)
    ledger = CountingLedger(farm)
    with render_loop(farm, family, ledger=ledger, slots=6) as loop:
        assert loop.render_all() == 3 * JOBS
        assert batch.wait(timeout_s=30).done == 3 * JOBS
    for number, at_s in enumerate(ledger.committed_s):
        assert number <= 4 + (at_s - ledger.committed_s[0])


def test_several_jobs_are_leased_and_committed_at_once(farm: Farm, family: Family) -> None:
    submit(farm, JOBS)
    ledger = CountingLedger(farm)
    with render_loop(farm, family, ledger=ledger, slots=6) as loop:
        assert loop.render_all() == JOBS
    # six to render, as many ahead in halves, and the call that returns no job
    assert max(ledger.leased) == 6
    assert sum(ledger.leased) == JOBS
    assert sum(1 for count in ledger.leased if count) <= 4
    # the first six end at the same step
    assert ledger.committed[0] == 6


def test_a_doorbell_just_after_the_queue_was_empty_is_answered(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfarm_worker.service.prefetcher._EMPTY_PAUSE_S", 60)
    with render_loop(farm, family) as loop:
        assert loop.render_all() == 0
        submit(farm, 1)
        # no other worker would hear this doorbell
        assert loop.render_all() == 1

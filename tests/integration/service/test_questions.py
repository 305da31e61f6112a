"""How often a worker asks Redis, which answers the whole farm: for several jobs at once, and of several pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from tests.conftest import until
from tests.support.rendering import images, renderer, submit

from latentfarm import Farm
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.records import CommitOutcome
from latentfarm_worker.models import Family

pytestmark = pytest.mark.integration

JOBS = 12


class CountingLedger(Ledger):
    """The real ledger, which takes down what it is asked; its first commit waits for ``until_stored`` pictures."""

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


def test_pictures_that_are_stored_while_a_commit_runs_are_committed_by_the_next(farm: Farm, family: Family) -> None:
    batch = submit(farm, JOBS)
    ledger = CountingLedger(farm, until_stored=JOBS)
    with renderer(farm, family, ledger=ledger) as worker:
        assert worker.render_all() == JOBS
        assert batch.wait(timeout_s=30).done == JOBS
    # the last may lie in the bucket and not be handed on yet
    assert len(ledger.committed) <= 3
    assert sum(ledger.committed) == JOBS


def test_two_commits_a_second_are_made_in_the_long_run_and_four_more_at_first(farm: Farm, family: Family) -> None:
    # alone it draws many more a second
    batch = submit(farm, 3 * JOBS, num_inference_steps=1)
    ledger = CountingLedger(farm)
    with renderer(farm, family, ledger=ledger, slots=6) as worker:
        assert worker.render_all() == 3 * JOBS
        assert batch.wait(timeout_s=30).done == 3 * JOBS
    for number, at_s in enumerate(ledger.committed_s):
        assert number <= 4 + 2 * (at_s - ledger.committed_s[0])


def test_several_jobs_are_leased_at_once(farm: Farm, family: Family) -> None:
    submit(farm, JOBS)
    ledger = CountingLedger(farm)
    with renderer(farm, family, ledger=ledger, slots=6) as worker:
        assert worker.render_all() == JOBS
    # six to render, as many ahead in halves, and the question that tells of the end
    assert max(ledger.leased) == 6
    assert sum(ledger.leased) == JOBS
    assert sum(1 for count in ledger.leased if count) <= 4

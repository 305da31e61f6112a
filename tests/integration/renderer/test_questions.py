"""How often a worker asks Redis, which answers the whole farm: for several jobs at once, and of several pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tests.conftest import until
from tests.rendering import renderer, submit

from latentfarm import Farm
from latentfarm.bucket import images_prefix
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.records import CommitOutcome
from latentfarm_worker.families import Family

pytestmark = pytest.mark.integration

JOBS = 12


class CountingLedger(Ledger):
    """The real ledger; its first commit takes until all other pictures are stored."""

    def __init__(self, farm: Farm) -> None:
        super().__init__(farm.ledger.redis, where=farm.ledger.where)
        self.farm = farm
        self.committed: list[int] = []
        self.leased: list[int] = []

    def commit_all(self, finished: Sequence[tuple[Lease, dict[str, Any]]]) -> list[CommitOutcome]:
        self.committed.append(len(finished))
        until(lambda: len(list(self.farm.bucket.keys(images_prefix("b", 0)))) == JOBS)
        return super().commit_all(finished)

    def lease(self, *args: Any, **options: Any) -> list[Lease]:
        leases = super().lease(*args, **options)
        self.leased.append(len(leases))
        return leases


def test_pictures_that_are_stored_while_a_commit_runs_are_committed_by_the_next(farm: Farm, family: Family) -> None:
    batch = submit(farm, JOBS)
    ledger = CountingLedger(farm)
    with renderer(farm, family, ledger=ledger) as worker:
        assert worker.render_all() == JOBS
        assert batch.wait(timeout_s=30).done == JOBS
    # the last may lie in the bucket and not be handed on yet
    assert len(ledger.committed) <= 3
    assert sum(ledger.committed) == JOBS


def test_several_jobs_are_leased_at_once(farm: Farm, family: Family) -> None:
    submit(farm, JOBS)
    ledger = CountingLedger(farm)
    with renderer(farm, family, ledger=ledger, slots=6) as worker:
        assert worker.render_all() == JOBS
    # six to render, as many ahead in halves, and the question that tells of the end
    assert max(ledger.leased) == 6
    assert sum(ledger.leased) == JOBS
    assert sum(1 for count in ledger.leased if count) <= 4

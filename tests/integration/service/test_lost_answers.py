"""An answer of Redis is lost: a TCP proxy drops it, and the caller repeats the request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.chaos.network import Link, Network
from tests.support.rendering import render_loop

from latentfarm import Farm, UnavailableError
from latentfarm.ledger import Lease, Ledger
from latentfarm_worker.mini import MODEL_DIR
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.integration


@pytest.fixture
def link(farm: Farm) -> Iterator[Link]:
    with Network() as network:
        yield Link(network, farm.settings.redis_url.removeprefix("unix://"), seed=0)


class LossyLedger(Ledger):
    """A ledger behind a link that drops the answer to the first lease."""

    link: Link
    lease_calls = 0

    def lease(self, *args: Any, **options: Any) -> list[Lease]:
        self.lease_calls += 1
        # the check of an idle connection comes first, and its answer must not be the one that is dropped
        self.ping()
        self.link.eat_share = 1.0 if self.lease_calls == 1 else 0.0
        try:
            return super().lease(*args, **options)
        finally:
            self.link.eat_share = 0.0


@pytest.fixture
def ledger(link: Link) -> LossyLedger:
    lossy = LossyLedger.connect(link.url)
    # load the script first, so that the answer to the lease itself is dropped
    Ledger.lease(lossy, "unserved", "w", 1, lease_s=1)
    lossy.link = link
    return lossy


def test_a_repeated_request_gets_the_leases_of_the_lost_answer(farm: Farm, ledger: LossyLedger, link: Link) -> None:
    farm.submit([{"prompt": "p"}] * 3, batch="b")
    with pytest.raises(UnavailableError):
        ledger.lease("mini", "w", 2, lease_s=30, request="one")
    assert link.eaten >= 1
    assert farm.batch("b").status().leased == 2
    assert [lease.index for lease in ledger.lease("mini", "w", 2, lease_s=30, request="one")] == [0, 1]
    assert farm.batch("b").status().leased == 2


def test_a_worker_renders_the_jobs_whose_lease_answer_was_lost(farm: Farm, ledger: LossyLedger) -> None:
    row = {"prompt": "a red circle", "width": 64, "height": 64, "num_inference_steps": 1}
    batch = farm.submit([row] * 2, batch="b")
    family = load_family(MODEL_DIR, dtype=torch.float32, device=torch.device("cpu"))
    with render_loop(farm, family, ledger=ledger) as loop:
        # the first call leased all jobs: without its answer there is no other job to render
        assert loop.render_all() == 2
        assert batch.wait(timeout_s=20).done == 2
    assert ledger.lease_calls >= 2
    assert [job.attempts for job in batch.jobs()] == [1, 1]

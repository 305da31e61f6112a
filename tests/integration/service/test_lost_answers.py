"""What Redis answers is lost on the way: a TCP proxy eats it, and the caller asks again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.chaos.network import Link, Network
from tests.support.rendering import renderer

from latentfarm import Farm, UnavailableError
from latentfarm.ledger import Lease, Ledger
from latentfarm_worker.mini import MODEL_DIR
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.integration


@pytest.fixture
def link(farm: Farm) -> Iterator[Link]:
    with Network() as network:
        yield Link(network, farm.settings.redis_url.removeprefix("unix://"), seed=0)


class Forgetful(Ledger):
    """A ledger behind a link that eats the answer to the first lease."""

    link: Link
    leases_asked = 0

    def lease(self, *args: Any, **options: Any) -> list[Lease]:
        self.leases_asked += 1
        # an idle connection is checked before it is used, and that answer is not meant
        self.ping()
        self.link.eat_share = 1.0 if self.leases_asked == 1 else 0.0
        try:
            return super().lease(*args, **options)
        finally:
            self.link.eat_share = 0.0


@pytest.fixture
def ledger(link: Link) -> Forgetful:
    forgetful = Forgetful.connect(link.url)
    # the script is known: what is eaten is the answer to it
    Ledger.lease(forgetful, "nobodys", "w", 1, lease_s=1)
    forgetful.link = link
    return forgetful


def test_leases_whose_answer_was_lost_are_given_to_who_asks_again(farm: Farm, ledger: Forgetful, link: Link) -> None:
    farm.submit([{"prompt": "p"}] * 3, batch="b")
    with pytest.raises(UnavailableError):
        ledger.lease("mini", "w", 2, lease_s=30, request="one")
    assert link.eaten >= 1
    assert farm.batch("b").status().leased == 2
    assert [lease.index for lease in ledger.lease("mini", "w", 2, lease_s=30, request="one")] == [0, 1]
    assert farm.batch("b").status().leased == 2


def test_a_worker_renders_what_it_was_leased_by_an_answer_that_was_lost(farm: Farm, ledger: Forgetful) -> None:
    row = {"prompt": "a red circle", "width": 64, "height": 64, "num_inference_steps": 1}
    batch = farm.submit([row] * 2, batch="b")
    family = load_family(MODEL_DIR, dtype=torch.float32, device=torch.device("cpu"))
    with renderer(farm, family, ledger=ledger) as worker:
        # the first call took all there is: who did not get it again would find nothing to do
        assert worker.render_all() == 2
        assert batch.wait(timeout_s=20).done == 2
    assert ledger.leases_asked >= 2
    assert [job.attempts for job in batch.jobs()] == [1, 1]

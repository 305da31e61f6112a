"""A worker's process ends the leases of the process before it, which died."""

from __future__ import annotations

import pytest
from tests.support.leasing import holders, lease, opened
from tests.support.machines import free_ports

from latentfarm.ledger import Ledger
from latentfarm_worker.service.predecessor import end_predecessor
from latentfarm_worker.supervise.shared_state import SharedState

pytestmark = pytest.mark.integration


@pytest.fixture
def state() -> SharedState:
    return SharedState()


def test_jobs_at_risk_run_alone_next_and_the_others_are_released(ledger: Ledger, state: SharedState) -> None:
    opened(ledger, "b", 4)
    held = lease(ledger, 3)
    lease(ledger, 1, worker="worker-b")
    state.record_at_risk([(held[1].name, held[1].epoch)], lone=True)
    end_predecessor(ledger, state, "worker-a")
    assert holders(ledger) == {"worker-b"}
    assert ledger.redis.hgetall(b"{lf}:lost_by:b") == {b"1": b"crash:worker-a"}
    assert ledger.redis.hgetall(b"{lf}:attempts:b") == {}

    # what this process leases is its own
    lease(ledger, 2)
    end_predecessor(ledger, state, "worker-a")
    assert holders(ledger) == {"worker-a", "worker-b"}


def test_the_leases_of_an_older_epoch_are_not_accused(ledger: Ledger, state: SharedState) -> None:
    opened(ledger, "b", 1)
    [older] = lease(ledger)
    ledger.release([older])
    lease(ledger)
    state.record_at_risk([(older.name, older.epoch)], lone=True)
    end_predecessor(ledger, state, "worker-a")
    assert holders(ledger) == set()
    assert ledger.redis.hgetall(b"{lf}:lost_by:b") == {}


def test_if_it_is_unknown_which_job_is_the_cause_the_leases_expire(ledger: Ledger, state: SharedState) -> None:
    opened(ledger, "b", 2)
    lease(ledger, 2)
    end_predecessor(ledger, state, "worker-a")
    assert holders(ledger) == {"worker-a"}


def test_an_unavailable_redis_delays_it(ledger: Ledger, state: SharedState, caplog: pytest.LogCaptureFixture) -> None:
    opened(ledger, "b", 1)
    [held] = lease(ledger)
    state.record_at_risk([(held.name, held.epoch)], lone=False)
    [port] = free_ports(1)
    end_predecessor(Ledger.connect(f"redis://127.0.0.1:{port}/0"), state, "worker-a")
    assert "the leases of the process before this one are not ended yet" in caplog.text
    end_predecessor(ledger, state, "worker-a", patience_s=10)
    assert holders(ledger) == set()

"""Jobs that had trouble: with whom they run next, when, and when they fail."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.leasing import expire, lease, make_due, opened

from latentfarm.job_state import JobState
from latentfarm.ledger import Company, Ledger, Restoration
from latentfarm.limits import PART_JOBS

pytestmark = pytest.mark.integration

ERROR = {"code": "engine_error", "message": "RuntimeError: no"}


def next_companies(ledger: Ledger, k: int, *, alone: bool = True) -> list[tuple[int, Company]]:
    make_due(ledger)
    return [(each.index, each.company) for each in ledger.lease("mini", "w", k, lease_s=30, alone=alone)]


def test_a_job_that_was_lost_once_runs_with_others_that_were_lost(ledger: Ledger) -> None:
    opened(ledger)
    lease(ledger, 2)
    expire(ledger)
    assert next_companies(ledger, 3) == [(0, Company.LOST), (1, Company.LOST), (2, Company.ANY)]


@pytest.mark.parametrize("trouble", ["two losses", "a crash", "an error of its own"])
def test_after_more_trouble_a_job_runs_alone_and_a_worker_has_one_of_them_at_a_time(
    ledger: Ledger, trouble: str
) -> None:
    opened(ledger)
    held = lease(ledger, 2)
    if trouble == "two losses":
        expire(ledger)
        lease(ledger, 2)
        expire(ledger)
    elif trouble == "a crash":
        assert ledger.record_crash(held) == ["requeued", "requeued"]
    else:
        assert [ledger.fail(each, ERROR, retry=True) for each in held] == ["retry", "retry"]
    assert next_companies(ledger, 2, alone=False) == [(2, Company.ANY), (3, Company.ANY)]
    assert next_companies(ledger, 5) == [(0, Company.ALONE), (4, Company.ANY)]
    assert next_companies(ledger, 5) == [(1, Company.ALONE)]


def test_no_loss_charges_an_attempt(ledger: Ledger) -> None:
    opened(ledger, total=2)
    lease(ledger, 2)
    expire(ledger)
    ledger.record_crash(lease(ledger, 2))
    make_due(ledger)
    [held] = lease(ledger, 2)
    assert held.attempts == 0
    ledger.commit([(held, {})])
    assert [each.attempts for each in ledger.jobs("cats", [0, 1])] == [1, 0]


def test_a_job_that_crashed_its_worker_waits_so_that_the_worker_renders_another_one_first(ledger: Ledger) -> None:
    opened(ledger, total=3)
    ledger.record_crash(lease(ledger))
    assert [each.index for each in lease(ledger, 3)] == [1, 2]
    now_ms = ledger.now_us() / 1000
    client: Any = ledger.redis
    assert 0 < client.zscore("{lf}:suspects:cats", "0") - now_ms <= 1_000


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (["crash:a"] * 3, "lost 3 times with 1 worker, 3 of them in a call for this job"),
        (["a", "crash:b", "a", "a", "c", "a"], "lost 6 times with 3 workers, 1 of them in a call for this job"),
        (["a"] * 6, "lost 6 times with 1 worker, 0 of them in a call for this job"),
    ],
)
def test_a_job_that_ends_its_workers_fails_as_poison(ledger: Ledger, losses: list[str], message: str) -> None:
    opened(ledger, total=1)
    for loss in losses:
        assert ledger.batch("cats").state == "open"
        worker = loss.removeprefix("crash:")
        make_due(ledger)
        held = lease(ledger, worker=worker)
        assert len(held) == 1
        if worker == loss:
            assert expire(ledger) == 1
        else:
            ledger.record_crash(held)
    [record] = ledger.jobs("cats", [0])
    assert (record.state, record.attempts) == (JobState.FAILED, 0)
    assert record.error == {"code": "poison", "message": message, "worker": losses[-1].removeprefix("crash:")}
    assert ledger.batch("cats").state == "complete"


def test_a_retry_clears_a_job_of_its_losses(ledger: Ledger) -> None:
    opened(ledger, total=1)
    for _ in range(3):
        make_due(ledger)
        ledger.record_crash(lease(ledger))
    assert ledger.retry("cats", [(0, "poison")]) == 1
    assert next_companies(ledger, 1) == [(0, Company.ANY)]


def test_the_leases_of_a_dead_worker_end_at_once_and_only_jobs_at_risk_are_suspects(ledger: Ledger) -> None:
    opened(ledger, total=6)
    held = lease(ledger, 4, worker="dead")
    [other] = lease(ledger, worker="a worker that is not dead")
    assert ledger.end_worker("dead", [(held[1].name, held[1].epoch), (held[2].name, held[2].epoch - 1)]) == (3, 1)
    assert ledger.end_worker("dead", []) == (0, 0)
    assert ledger.renew([other], lease_s=30) == set()
    make_due(ledger)
    again = {each.index: each.company for each in lease(ledger, 6)}
    assert again == {0: Company.ANY, 1: Company.ALONE, 2: Company.ANY, 3: Company.ANY, 5: Company.ANY}


def test_a_canary_waits_for_its_jobs_that_run_alone(ledger: Ledger) -> None:
    opened(ledger, total=9, canary=2)
    first, second = lease(ledger, 2)
    ledger.record_crash([first])
    ledger.commit([(second, {})])
    assert not ledger.batch("cats").paused_by
    assert (ledger.count_pending("mini"), ledger.heartbeat("mini", "w").pending) == (1, 1)
    make_due(ledger)
    [alone] = lease(ledger, 5)
    ledger.commit([(alone, {})])
    assert ledger.batch("cats").paused_by == "canary"


@pytest.mark.parametrize("delay_s", [60, 0])
def test_the_cursor_of_a_recovered_batch_never_finds_a_job_that_waits_for_its_time(
    ledger: Ledger, delay_s: float
) -> None:
    opened(ledger, total=4)
    restoration = Restoration(ledger, "cats")
    fields: dict[str, str | int | float] = {"digest": "d", "model": "mini", "webhook": "", "paused_by": ""}
    restoration.begin(total=4, fields=fields | {"priority": 0, "budget": 0, "canary": 0})
    failed = {2: {"code": "x", "message": "m"}}
    states = [JobState.PENDING, JobState.PENDING, JobState.FAILED, JobState.PENDING]
    restoration.write_part(0, states, receipts={}, errors=failed, flushed=False)
    restoration.end(parts_digest="c", closed=True, cancelled=False)
    assert ledger.retry("cats", [(2, "x")]) == 1
    [again] = lease(ledger)
    assert again.index == 2
    assert ledger.fail(again, ERROR, retry=True, delay_s=delay_s) == "retry"
    found = lease(ledger, 9)
    assert sorted(each.index for each in found) == ([0, 1, 3] if delay_s else [0, 1, 2, 3])
    assert ledger.batch("cats").leased == len(found)
    make_due(ledger)
    found += lease(ledger, 9)
    assert set(ledger.commit([(each, {}) for each in found])) == {"done", "full"}
    record = ledger.batch("cats")
    assert (record.state, record.leased, record.done) == ("complete", 0, 4)


def test_an_image_under_a_lost_lease_clears_its_job(ledger: Ledger) -> None:
    opened(ledger, total=1)
    [late] = lease(ledger)
    expire(ledger)
    [held] = lease(ledger)
    assert held.company is Company.LOST
    assert ledger.commit([(late, {})]) == ["stale"]
    ledger.release([held])
    assert next_companies(ledger, 1) == [(0, Company.ANY)]


def test_a_worker_that_lives_clears_the_jobs_that_it_lost_but_not_of_crashes(ledger: Ledger) -> None:
    opened(ledger, total=2)
    lost = lease(ledger, 2)
    expire(ledger)
    ledger.record_crash([each for each in lease(ledger, 2) if each.index == 1])
    assert ledger.renew(lost, lease_s=30) == {"cats/0", "cats/1"}
    expire(ledger)
    # one loss each since then
    assert next_companies(ledger, 2) == [(1, Company.ALONE), (0, Company.LOST)]


def test_every_key_of_a_batch_with_suspects_goes_with_it(ledger: Ledger) -> None:
    opened(ledger, total=PART_JOBS)
    ledger.record_crash(lease(ledger, 3))
    ledger.cancel("cats")
    ledger.mark_deleting("cats")
    ledger.delete_batch("cats")
    client: Any = ledger.redis
    assert [key for key in client.keys("{lf}:*") if b"cats" in key] == []

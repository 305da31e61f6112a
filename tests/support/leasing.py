"""Batches and leases of a ledger without a bucket and workers."""

from __future__ import annotations

from typing import Any

from latentfarm.ledger import Lease, Ledger


def opened(ledger: Ledger, batch: str = "cats", total: int = 5, *, model: str = "mini", **options: Any) -> str:
    """Create a batch with all its jobs; return its name."""
    ledger.create_batch(batch, digest=f"digest of {batch}", model=model, **options)
    ledger.append_jobs(batch, before=0, total=total, parts_digest="c", closed=True)
    return batch


def keys_left(ledger: Ledger) -> list[str]:
    """Return the keys of the ledger, without the events of the past."""
    client: Any = ledger.redis
    return sorted(key.decode() for key in client.keys("{lf}:*") if key != b"{lf}:events")


def fail(ledger: Ledger, leases: list[Lease], code: str = "nan") -> None:
    """Fail jobs for good."""
    for each in leases:
        ledger.fail(each, {"code": code, "message": "not finite"})


def draft_all(ledger: Ledger, leases: list[Lease]) -> None:
    """Commit drafts of jobs, which have nothing in a bucket."""
    for each in leases:
        assert ledger.commit([(each, {"key": "k", "draft": {"evaluations": 3, "of": 10}})])[0] in {"done", "full"}


def lease(ledger: Ledger, k: int = 1, *, worker: str = "worker-a") -> list[Lease]:
    """Lease up to ``k`` jobs of ``mini``."""
    return ledger.lease("mini", worker, k, lease_s=30)


def expire(ledger: Ledger) -> int:
    """Let every lease expire now; return how many did."""
    client: Any = ledger.redis
    for name in client.zrange("{lf}:leases", 0, -1):
        client.zadd("{lf}:leases", {name: 1})
    ledger.redis.delete("{lf}:sweep_lock")
    return ledger.expire_leases()


def make_due(ledger: Ledger, batch: str = "cats") -> None:
    """Let the time pass until every job that runs again may run, in order of index."""
    client: Any = ledger.redis
    for queue in ("requeued", "suspects"):
        for index in client.zrange(f"{{lf}}:{queue}:{batch}", 0, -1):
            client.zadd(f"{{lf}}:{queue}:{batch}", {index: 1})
    for key in client.keys("{lf}:waiting:*"):
        client.zadd(key, {batch: 1}, xx=True)


def flushes_due(ledger: Ledger) -> None:
    """Let the time pass until every part that is to be flushed is due, also if its claimer has died."""
    client: Any = ledger.redis
    for name in client.zrange("{lf}:flush_queue", 0, -1):
        client.zadd("{lf}:flush_queue", {name: 1}, xx=True)


def holders(ledger: Ledger) -> set[str]:
    """Return the workers that hold a lease."""
    client: Any = ledger.redis
    return {value.decode().partition(" ")[2] for value in client.hvals("{lf}:holders")}

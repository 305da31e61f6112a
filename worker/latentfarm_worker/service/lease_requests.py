"""The worker's requests for leases: one at a time, so that the ledger can repeat an answer that was lost."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from functools import partial
from threading import Lock

from latentfarm.ledger import Lease, Ledger
from latentfarm_worker.service.lease_renewer import LeaseRenewer


class LeaseRequests:
    """Leases jobs of one model for one worker. Thread-safe.

    Args:
        ledger: the ledger.
        leases: holds what is leased.
        model: alias of the model.
        worker: name of the worker in the ledger.
        lease_ttl_s: seconds until a lease expires unless it is renewed.
    """

    def __init__(self, ledger: Ledger, leases: LeaseRenewer, *, model: str, worker: str, lease_ttl_s: float) -> None:
        self._ledger = ledger
        self._leases = leases
        self._model, self._worker, self._lease_ttl_s = model, worker, lease_ttl_s
        self._lock = Lock()
        # it stays the same until the leases are held: a repeated request returns the leases of a lost answer, to
        # whichever thread makes it
        self._request_id = uuid.uuid4().hex

    def lease(self, count: int, *, alone: bool, others_first: bool = False, urgent: bool = False) -> list[Lease]:
        """Lease and hold up to ``count`` jobs, or those of a lost answer.

        Args:
            count: how many.
            alone: one of them may be a job that must run alone.
            others_first: only if there are no others.
            urgent: only urgent jobs.
        """
        with self._lock:
            lease = partial(
                self._ledger.lease,
                self._model,
                self._worker,
                count,
                lease_s=self._lease_ttl_s,
                request=self._request_id,
                urgent=urgent,
            )
            leases = lease(alone=alone and not others_first)
            if not leases and alone and others_first:
                leases = lease(alone=True)
            self._leases.hold(leases)
            self._request_id = uuid.uuid4().hex
        return leases

    def give_back(self, leases: Iterable[Lease]) -> None:
        """Release leases uncharged."""
        self._ledger.release(self._leases.withdraw(leases))

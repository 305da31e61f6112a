"""How long images still take, estimated from recent steps: which ones a worker that ends releases or parks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple, cast

from latentfarm.ledger import Lease
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.service.checkpoints import Checkpoints
from latentfarm_worker.service.commits import Commits
from latentfarm_worker.service.job_supply import JobSupply
from latentfarm_worker.service.recent_seconds import RecentSeconds

#: safety factor of an estimated time
_SAFETY = 1.2


class _Rest(NamedTuple):
    """What is left of an image: evaluations of the model, none while it is decoded, and the seconds to its pixels."""

    lease: Lease
    evaluations: int
    seconds: float


class LateJobs:
    """Estimates which jobs come too late. ``add_decodes`` is for the engine's thread, the rest is thread-safe.

    Args:
        engine: the engine with the jobs that began.
        supply: has the jobs that the engine has not taken yet, and the time of a step.
        commits: knows how long an image takes to its commit.
        checkpoints: knows how long a checkpoint takes.
    """

    def __init__(self, engine: Engine, supply: JobSupply, *, commits: Commits, checkpoints: Checkpoints) -> None:
        self._engine = engine
        self._supply = supply
        self._commits = commits
        self._checkpoints = checkpoints
        self._decodes = RecentSeconds()

    def add_decodes(self, seconds: Iterable[float]) -> None:
        """Record how long images took to decode."""
        for each in seconds:
            self._decodes.add(each)

    def not_begun(self) -> list[Lease]:
        """Return the leases of jobs of which nothing was made under them, so that no work is lost without them."""
        waiting = (cast("Lease", handle) for handle, evaluations in self._engine.remaining() if evaluations is None)
        return [*self._supply.leases, *waiting]

    def find(self, deadline: float, *, all_begun: bool) -> list[Lease]:
        """Return the leases of jobs to release now, because the worker ends at ``deadline``, of ``time.monotonic()``.

        These are all that have not begun, and those that can neither be committed nor parked in time; with
        ``all_begun`` all others, too.
        """
        left_s = deadline - time.monotonic()
        rests = self._rests()
        if not all_begun:
            can_park = left_s > self._checkpoints.store_s
            rests = [each for each in rests if not (each.evaluations and can_park) and self._is_late(each, left_s)]
        return [*self.not_begun(), *(each.lease for each in rests)]

    def worth_parking(self, deadline: float | None = None) -> list[Lease]:
        """Return the leases of begun images that still take longer than a checkpoint, but for those clients wait for.

        With a ``deadline`` of ``time.monotonic()``, also all that cannot be committed by it.
        """
        left_s = float("inf") if deadline is None else deadline - time.monotonic()
        checkpoint_s = self._checkpoints.seconds
        return [
            each.lease
            for each in self._rests()
            if each.evaluations
            and ((each.seconds > checkpoint_s and not each.lease.interactive) or self._is_late(each, left_s))
        ]

    def _is_late(self, rest: _Rest, left_s: float) -> bool:
        return _SAFETY * rest.seconds > left_s - self._commits.median_latency_s

    def _rests(self) -> list[_Rest]:
        """Return what is left of each image that has begun, the shortest first."""
        remaining = ((evaluations, cast("Lease", handle)) for handle, evaluations in self._engine.remaining())
        begun = sorted(((left, lease) for left, lease in remaining if left is not None), key=itemgetter(0))
        step_s, decode_s = self._supply.step_s, self._decodes.median or 0.0
        if step_s is None:
            return [_Rest(lease, left, float("inf")) for left, lease in begun]
        # images that end together are decoded one after the other
        return [_Rest(lease, left, left * step_s + at * decode_s) for at, (left, lease) in enumerate(begun, 1)]

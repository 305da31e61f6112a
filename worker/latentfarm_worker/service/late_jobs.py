"""Which jobs of a worker that ends will not be committed in time, estimated from its recent steps."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterable
from operator import itemgetter
from typing import cast

from latentfarm.ledger import Lease
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.service.job_supply import JobSupply
from latentfarm_worker.service.uploader import Uploader

#: safety factor of an estimated time, and the number of measurements it is made of
_SAFETY, _RECENT = 1.2, 16


class LateJobs:
    """Estimates which jobs come too late. ``add_decodes`` is for the engine's thread; ``find`` is thread-safe.

    Args:
        engine: the engine with the jobs that began.
        supply: has the jobs that the engine has not taken yet, and the time of a step.
        uploader: knows how long an image takes to its commit.
    """

    def __init__(self, engine: Engine, supply: JobSupply, uploader: Uploader) -> None:
        self._engine = engine
        self._supply = supply
        self._uploader = uploader
        self._decode_s: deque[float] = deque(maxlen=_RECENT)

    def add_decodes(self, seconds: Iterable[float]) -> None:
        """Record how long images took to decode."""
        self._decode_s.extend(seconds)

    def find(self, deadline: float, *, all_begun: bool) -> list[Lease]:
        """Return the leases of jobs that will not be committed by ``deadline``, a time of ``time.monotonic()``.

        Waiting jobs are always among them, as no work is lost with them; with ``all_begun`` the begun ones, too.
        """
        remaining = [(cast("Lease", handle), evaluations) for handle, evaluations in self._engine.remaining()]
        late = [*self._supply.leases, *(lease for lease, evaluations in remaining if evaluations is None)]
        begun = [(evaluations, lease) for lease, evaluations in remaining if evaluations is not None]
        step_s = self._supply.step_s
        if all_begun or step_s is None:
            return late + [lease for _, lease in begun]
        left_s = deadline - time.monotonic() - self._uploader.commits.median_latency_s
        decode_s = statistics.median(self._decode_s or (0.0,))
        for position, (evaluations, lease) in enumerate(sorted(begun, key=itemgetter(0)), 1):
            # images that end together are decoded one after the other
            if _SAFETY * (evaluations * step_s + position * decode_s) > left_s:
                late.append(lease)
        return late

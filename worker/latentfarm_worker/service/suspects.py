"""Jobs that had trouble run apart from others, and each call of the device leaves a note of its jobs."""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

from latentfarm.ledger import Company, Lease
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.supervise.shared_state import SharedState

#: the cohort of jobs that were lost once: that may have been the fault of any of them, or of none
_LOST = "lost"


def cohort_of(lease: Lease) -> Hashable:
    """Return the cohort in which a job may run: with all others, with others that were lost, or alone."""
    match lease.company:
        case Company.ANY:
            return None
        case Company.LOST:
            return _LOST
        case Company.ALONE:
            return lease


class AtRiskRecorder:
    """Records which jobs take part in the next call of the device; an engine's ``on_forward``.

    It is called at each step of the engine, whose images are mostly those of the step before.
    """

    def __init__(self, engine: Engine, state: SharedState) -> None:
        self._engine = engine
        self._state = state
        self._recorded: list[Hashable] | None = None

    def __call__(self) -> None:
        handles = self._engine.at_risk()
        if handles != self._recorded:
            leases = [(lease.name, lease.epoch) for lease in cast("list[Lease]", handles)]
            self._state.record_at_risk(leases, lone=len(leases) == 1)
            self._recorded = handles
        self._state.step()

"""Errors of the device: whose fault they are, and the end of a process that has lost its device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from threading import Event
from typing import cast

from latentfarm.ledger import Lease
from latentfarm_worker import device_errors
from latentfarm_worker.engine.engine import Engine, Failed
from latentfarm_worker.engine.self_test import find_fault
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.lease_returns import LeaseReturns

log = logging.getLogger(__name__)


class DeviceFaults:
    """Handles the errors of one engine's calls.

    Args:
        engine: the engine.
        returns: gives jobs back.
        hooks: the process, which ends without its device.
        abandon: called when the device is lost: it releases the jobs that are not finished.

    Attributes:
        lost: set once the device is lost to this process.
    """

    def __init__(
        self, engine: Engine, *, returns: LeaseReturns, hooks: WorkerHooks, abandon: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._returns = returns
        self._hooks = hooks
        self._abandon = abandon
        self.lost = Event()

    def isolate(self, error: Exception) -> list[Failed]:
        """Go on after a broken step; return the job whose fault it is, once it is known.

        Before a job is charged, the device must show that it can render something else.
        """
        if device_errors.is_fatal(error):
            self.on_lost(error)
            return []
        log.error("a call of the device failed with %d jobs", len(self._engine.at_risk()), exc_info=error)
        failed = self._engine.isolate(error)
        charged = [cast("Lease", each.handle) for each in failed if each.retry]
        engine = self._engine
        fault = find_fault(engine.family, engine.micro_batch, on_forward=engine.on_forward) if charged else None
        if fault is None:
            return failed
        self._hooks.state.forget_at_risk()
        self._returns.release(charged)
        self.on_lost(fault, at_risk=())
        return []

    def on_lost(self, error: Exception, at_risk: Collection[Lease] | None = None) -> None:
        """End this process: jobs at risk [default: those in the broken call] run alone next, others are released."""
        log.critical("the device is lost to this process: %s", error)
        self.lost.set()
        self._returns.record_crash(cast("list[Lease]", self._engine.at_risk()) if at_risk is None else at_risk)
        self._abandon()
        self._hooks.on_device_lost()

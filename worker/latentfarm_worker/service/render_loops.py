"""The render loops of a worker's models, of which one renders at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from threading import TIMEOUT_MAX, Lock

from latentfarm_worker.service.parking import PAUSED_S
from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.service.turns import Turns


class RenderLoops:
    """Render the jobs of all models of a worker, in turns. With one model it is that model's loop.

    All methods are thread-safe.

    Args:
        loops: the render loop of each model, by alias.
        turns: decides which model has its turn.
    """

    def __init__(self, loops: Mapping[str, RenderLoop], turns: Turns) -> None:
        self._loops = dict(loops)
        self._turns = turns
        #: of the thread that uses the device
        self._device_lock = Lock()
        self._deadline = float("inf")
        if len(self._loops) > 1:
            for loop in self._loops.values():
                loop.between_steps = self._park_interrupted
                loop.sleep()

    def render_all(self) -> int:
        """Render until the ledger has no more jobs of any model, or ``stop``; return the number of ended jobs."""
        if len(self._loops) == 1:
            [loop] = self._loops.values()
            return loop.render_all()
        with self._device_lock:
            return self._render_in_turns()

    def _render_in_turns(self) -> int:
        ended, empty = 0, set[str]()
        while turn := self._turns.next(empty):
            loop = self._loops[turn.model]
            if loop.stopped:
                # one stop request, or lost device, is for all
                break
            rendered = loop.render_all(turn)
            ended += rendered
            if loop.unfinished or turn.paused:
                # it goes on later
                continue
            self._turns.end(turn, rendered=rendered > 0)
            if turn.urgent:
                continue
            # after an image, time has passed: another model may have jobs by now
            empty = set() if turn.over else {turn.model} if rendered else empty | {turn.model}
        return ended

    def _park_interrupted(self) -> None:
        """Park the images of a turn that urgent jobs of other models have interrupted for seconds."""
        if model := self._turns.left_for(PAUSED_S):
            self._loops[model].park_all()

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def leases_held(self) -> int:
        return sum(loop.leases_held for loop in self._loops.values())

    @property
    def draining(self) -> bool:
        """Whether no more jobs are leased."""
        return any(loop.draining for loop in self._loops.values())

    # -- ending ----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Make ``render_all`` return after the current step, as ``RenderLoop.stop``."""
        for loop in self._loops.values():
            loop.stop()

    def drain(self, deadline: float) -> None:
        """Lease no more and finish what can be committed by ``deadline``, as ``RenderLoop.drain``."""
        self._deadline = deadline
        for loop in self._loops.values():
            loop.drain(deadline)

    def release_unfinishable(self) -> None:
        """Release the jobs that cannot be committed in time, uncharged."""
        for loop in self._loops.values():
            loop.release_unfinishable()

    def release_all(self) -> None:
        """Stop, and release all leases uncharged."""
        for loop in self._loops.values():
            loop.release_all()

    def abandon_device(self) -> None:
        """Make no further step with any model, and release what is not finished: the device is lost."""
        for loop in self._loops.values():
            loop.abandon_device()

    def close(self) -> None:
        """Store what is finished, release the rest uncharged, and end all threads, as ``RenderLoop.close``."""
        if self._deadline < float("inf"):
            # the images of a turn that was interrupted end by the same call as the others
            wait_s = max(0.0, min(self._deadline - time.monotonic(), TIMEOUT_MAX))
            if self._device_lock.acquire(timeout=wait_s):
                self._device_lock.release()
        for loop in self._loops.values():
            loop.close()

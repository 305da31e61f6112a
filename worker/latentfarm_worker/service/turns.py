"""Which model of a worker renders, and for how long. It imports no torch, and no thread of it runs.

A worker of several models renders with one at a time. The model that has its turn goes on while it has jobs. Once
``turn_s`` are over and another model waits, it leases nothing more and ends its running images; then the model that
waits longest has its turn. So a model waits at most for one turn, its running images and the load of weights of each
other model: ``(models - 1) * (turn_s + images + load)``.

An urgent job, such as one for which a client waits, interrupts the turn of another model between two steps. The running
images stay where they are, and go on after it; if it takes long, they are parked. Such jobs go before all others, as
they do within a model, so the bound leaves them out. Neither interruptions nor loads count for the length of a turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from threading import Lock


class Turn:
    """The turn of one model; ``urgent`` if only for urgent jobs. Thread-safe.

    Args:
        turns: what decides when it is over.
        model: alias of the model.
        urgent: whether only urgent jobs are rendered.
        began: when it began, a time of the clock of ``turns``.
    """

    def __init__(self, turns: Turns, model: str, *, urgent: bool, began: float) -> None:
        self._turns = turns
        self.model = model
        self.urgent = urgent
        self.began = began
        #: when it was interrupted
        self.left: float | None = None
        self._over = False

    @property
    def over(self) -> bool:
        """Whether the model must lease nothing more. It stays true, so that a turn cannot begin again."""
        self._over = self._over or self._turns.is_over(self)
        return self._over

    @property
    def interrupted(self) -> bool:
        """Whether the model must make no step now."""
        return self._turns.is_interrupted(self)

    def extend(self, seconds: float) -> None:
        """Do not count time that was spent on a load. Only the thread that renders may call it."""
        self.began += seconds

    @property
    def paused(self) -> bool:
        """Whether the model must make no step now, but has its turn afterwards."""
        return self.interrupted and not self.over


class Turns:
    """The turns of the models of one worker. Thread-safe.

    Args:
        models: their aliases; the first has the first turn.
        turn_s: seconds after which a model gives way to one that waits.
        clock: returns seconds.
    """

    def __init__(self, models: Sequence[str], *, turn_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._models = tuple(models)
        self._turn_s = turn_s
        self._clock = clock
        self._lock = Lock()
        #: since when each model waits
        self._waiting: dict[str, float] = {}
        #: the models that have urgent jobs, in order
        self._urgent: dict[str, None] = {}
        #: the turn that has begun and not ended, perhaps interrupted
        self._open: Turn | None = None
        #: the model that rendered last, unless it had to give way: its jobs are leased first
        self._loaded: str | None = self._models[0]

    def on_pending(self, model: str, jobs: int) -> None:
        """Record how many jobs of a model wait for a lease."""
        with self._lock:
            if not jobs:
                self._waiting.pop(model, None)
            elif self._open is None or self._open.model != model:
                self._waiting.setdefault(model, self._clock())

    def on_urgent(self, model: str) -> None:
        """Record that a model has an urgent job."""
        with self._lock:
            self._urgent[model] = None

    # -- the current turn ------------------------------------------------------------------------------------

    def is_over(self, turn: Turn) -> bool:
        """Return whether a turn has lasted long enough while another model waits."""
        with self._lock:
            others = self._urgent if turn.urgent else self._waiting
            return self._clock() >= turn.began + self._turn_s and any(model != turn.model for model in others)

    def is_interrupted(self, turn: Turn) -> bool:
        """Return whether another model has an urgent job; an urgent turn is not interrupted."""
        with self._lock:
            return not turn.urgent and any(model != turn.model for model in self._urgent)

    def left_for(self, seconds: float) -> str | None:
        """Return the model whose turn was interrupted longer ago than that and has not gone on yet; or None."""
        with self._lock:
            turn = self._open
            if turn is None or turn.left is None or self._clock() - turn.left <= seconds:
                return None
            return turn.model

    # -- order -----------------------------------------------------------------------------------------------

    def next(self, empty: Collection[str]) -> Turn | None:
        """Return the turn that begins or goes on now; None if all models are ``empty``.

        First those with urgent jobs, then an interrupted turn. Else the model that rendered last, whose
        weights are loaded; one that had to give way comes behind those that wait, the longest first.

        Args:
            empty: models of which no job was found just now.
        """
        with self._lock:
            now = self._clock()
            if self._open is not None:
                # its own urgent jobs are among its others, before them
                self._urgent.pop(self._open.model, None)
            if self._urgent:
                model = next(iter(self._urgent))
                del self._urgent[model]
                if self._open is not None and self._open.left is None:
                    self._open.left = now
                return Turn(self, model, urgent=True, began=now)
            if self._open is not None:
                if self._open.left is not None:
                    self._open.extend(now - self._open.left)
                    self._open.left = None
                return self._open
            found = [model for model in self._models if model not in empty]
            if not found:
                return None
            model = min(found, key=lambda model: (model != self._loaded, self._waiting.get(model, float("inf"))))
            self._waiting.pop(model, None)
            self._open = Turn(self, model, urgent=False, began=now)
            return self._open

    def end(self, turn: Turn, *, rendered: bool) -> None:
        """Record that a turn has ended: its model has no more jobs, or gave way.

        Args:
            turn: the turn.
            rendered: whether an image was rendered in it.
        """
        with self._lock:
            # read before, because `over` takes the lock
            gave_way = turn._over  # noqa: SLF001 (of this module)
            if turn.urgent:
                if gave_way:
                    # behind the others: there may be more of its jobs
                    self._urgent.pop(turn.model, None)
                    self._urgent[turn.model] = None
                return
            self._open = None
            if gave_way:
                self._loaded = None
                self._waiting.setdefault(turn.model, self._clock())
            elif rendered:
                self._loaded = turn.model

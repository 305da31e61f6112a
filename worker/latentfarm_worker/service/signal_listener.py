"""Listen for signals to workers, on a thread of its own: cancelled and paused batches, urgent jobs, that it is watched.

So a cancelled job stops at the next step and not at the next renewal, and an urgent job need not wait for the next
lease. A signal may be missed; then it comes about as without it.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

from latentfarm.errors import UnavailableError
from latentfarm.ledger import Ledger, WorkerSignals
from latentfarm_worker.service.threads import Threads

#: seconds that one call waits for a signal, and the pause if Redis is unavailable
_LISTEN_S = 0.25
#: seconds to wait at the end for a call to Redis that hangs
_CLOSE_S = 1.0


class SignalListener:
    """Passes signals on.

    Args:
        ledger: the ledger.
        on_cancelled: called with the name of each batch that is cancelled.
        on_paused: called with the name of each batch that is paused at once.
        on_urgent: called for each urgent job of the model.
        on_watched: called again and again while a client watches the worker.
        model: alias of the model whose urgent jobs count.
        worker: name of the worker in the ledger.
        threads: starts the thread.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        on_cancelled: Callable[[str], object],
        on_paused: Callable[[str], object],
        on_urgent: Callable[[], object],
        on_watched: Callable[[], object],
        model: str,
        worker: str,
        threads: Threads,
    ) -> None:
        self._ledger = ledger
        self._model = model
        self._worker = worker
        self._on_cancelled = on_cancelled
        self._on_paused = on_paused
        self._on_urgent = on_urgent
        self._on_watched = on_watched
        self._closing = Event()
        self._signals: WorkerSignals | None = None
        self._loop = threads.loop("signals", self._listen, interval_s=0)

    def close(self) -> None:
        """Listen no more."""
        self._closing.set()
        self._loop.stop(_CLOSE_S)
        if self._signals is not None:
            self._signals.close()

    def _listen(self) -> None:
        """Wait for a signal and pass it on."""
        signals = self._signals or self._ledger.signals(worker=self._worker)
        # after any error the next call begins with a new subscription
        self._signals = None
        try:
            signal = signals.wait(_LISTEN_S)
            self._signals = signals
        except UnavailableError:
            # not logged: the renewals and the heartbeat report the outage
            self._closing.wait(_LISTEN_S)
            return
        finally:
            if self._signals is None:
                signals.close()
        if signal is None:
            return
        if signal.kind == "cancelled":
            self._on_cancelled(signal.name)
        elif signal.kind == "paused":
            self._on_paused(signal.name)
        elif signal.kind == "watched":
            self._on_watched()
        elif signal.name == self._model:
            self._on_urgent()

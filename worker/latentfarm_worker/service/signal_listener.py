"""Listen for what the ledger signals, on a thread of its own: cancelled batches, and interactive jobs.

So a cancelled job stops at the next step and not at the next renewal, and an interactive job need not wait for the next
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
        model: alias of the model whose interactive jobs count.
        on_cancelled: called with the name of each batch that is cancelled.
        on_urgent: called for each interactive job of the model.
        threads: starts the thread.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        model: str,
        on_cancelled: Callable[[str], object],
        on_urgent: Callable[[], object],
        threads: Threads,
    ) -> None:
        self._ledger = ledger
        self._model = model
        self._on_cancelled = on_cancelled
        self._on_urgent = on_urgent
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
        signals = self._signals or self._ledger.signals()
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
        elif signal.name == self._model:
            self._on_urgent()

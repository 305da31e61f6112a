"""End the leases of the process that had this worker's name and died, so that their jobs need not wait to expire."""

from __future__ import annotations

import logging
import time

from latentfarm.errors import LatentfarmError, UnavailableError
from latentfarm.ledger import Ledger
from latentfarm_worker.supervise.shared_state import SharedState

log = logging.getLogger(__name__)

_PAUSE_S = 1.0


def end_predecessor(ledger: Ledger, state: SharedState, *names: str, patience_s: float = 0.0) -> None:
    """End every lease that is held in this worker's names: jobs at risk as crashed, the others uncharged.

    Call it before anything is leased, because it would end new leases too. It does nothing if no process died, or if
    it is unknown what that process was at; then the leases expire, which counts as a loss of each job.

    Args:
        ledger: The ledger.
        state: The state in which the process left its jobs at risk.
        names: The worker's names: one for each of its models.
        patience_s: Seconds to wait for an unavailable Redis; the time of a lease, after which all have expired.
    """
    at_risk = state.at_risk()
    if at_risk is None:
        return
    deadline = time.monotonic() + patience_s
    while True:
        try:
            ended = [ledger.end_worker(name, at_risk.leases) for name in names]
            released, crashed = (sum(counts) for counts in zip(*ended, strict=True))
        except UnavailableError as error:
            log.warning("the leases of the process before this one are not ended yet: %s", error)
        except LatentfarmError:
            raise
        except Exception:
            # this process can serve nevertheless: the leases expire
            log.exception("the leases of the process before this one cannot be ended")
            return
        else:
            state.forget_at_risk()
            if released or crashed:
                log.info(
                    "the process before this one died with %d jobs at risk; %d more were released", crashed, released
                )
            return
        if time.monotonic() + _PAUSE_S > deadline:
            return
        time.sleep(_PAUSE_S)

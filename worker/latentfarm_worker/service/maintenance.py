"""The farm's upkeep in the bucket, on a thread of its own: a store that hangs delays neither heartbeats nor sweeps."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from threading import Event

from latentfarm.errors import UnavailableError
from latentfarm.ledger import Ledger
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.deletion import delete_expired
from latentfarm.storage.orphans import collect_due
from latentfarm.storage.results import flush_due
from latentfarm_worker.service.metrics import Metrics, Operation
from latentfarm_worker.service.threads import Threads

log = logging.getLogger(__name__)

#: parts stored in one turn, so that deletions wait for no more, and batches deleted in one turn
_FLUSH_LIMIT, _DELETE_LIMIT = 20, 20
#: objects that may wait for their deletion: the rest of a deleted batch is no harm
_MAX_KEYS = 100_000


class Maintenance:
    """Stores results that are due, and deletes objects that are not needed. Thread-safe.

    Args:
        ledger: the ledger.
        bucket: the bucket.
        threads: starts the thread.
        metrics: counts retries.
        interval_s: seconds between two turns.
        orphans_after_s: seconds after a batch's end in which its workers may still store images.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        bucket: Bucket,
        threads: Threads,
        metrics: Metrics,
        interval_s: float,
        orphans_after_s: float,
    ) -> None:
        self._ledger = ledger
        self._bucket = bucket
        self._metrics = metrics
        self._orphans_after_s = orphans_after_s
        self._outdated: deque[str] = deque(maxlen=_MAX_KEYS)
        self._wake = Event()
        self._loop = threads.loop("maintenance", self._turn, interval_s=interval_s, wake=self._wake)

    def flush(self) -> None:
        """Store results now: a part is full."""
        self._wake.set()

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects soon. They are lost from sight if this process ends first, and only cost space."""
        self._outdated.extend(keys)
        self._wake.set()

    def close(self) -> None:
        """Begin no further turn. It does not wait for the store."""
        self._loop.stop()

    def _turn(self) -> None:
        """Do all duties, also if one of them fails; then raise the first error."""
        errors: list[Exception] = []
        for operation, duty in self._duties():
            try:
                duty()
            except Exception as error:  # noqa: BLE001 - raised below
                self._metrics.retry(operation, error)
                errors.append(error)
        # an unexpected one is raised: an outage hides none
        errors.sort(key=lambda error: isinstance(error, UnavailableError))
        for other in errors[1:]:
            log.warning("maintenance also failed with %s: %s", type(other).__name__, other)
            if not isinstance(other, UnavailableError):
                # the thread counts only the one that is raised
                self._metrics.thread_error("maintenance")
        if errors:
            raise errors[0]

    def _duties(self) -> list[tuple[Operation, Callable[[], object]]]:
        return [
            ("flush", self._flush_due),
            ("delete", self._delete_outdated),
            ("delete", self._collect_orphans),
            ("delete", self._delete_expired),
        ]

    def _flush_due(self) -> None:
        if flush_due(self._ledger, self._bucket, limit=_FLUSH_LIMIT) == _FLUSH_LIMIT:
            # more may be due
            self._wake.set()

    def _delete_outdated(self) -> None:
        # by index: another thread may append meanwhile
        keys = [self._outdated[at] for at in range(len(self._outdated))]
        self._bucket.delete(keys)
        for _ in keys:
            self._outdated.popleft()

    def _collect_orphans(self) -> None:
        collect_due(self._ledger, self._bucket, delay_s=self._orphans_after_s)

    def _delete_expired(self) -> None:
        if delete_expired(self._ledger, self._bucket, limit=_DELETE_LIMIT) == _DELETE_LIMIT:
            # more may be due
            self._wake.set()

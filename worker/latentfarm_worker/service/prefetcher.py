"""Jobs on their way to the engine: leased, read from the manifest and prepared ahead, on a thread of their own."""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from latentfarm.errors import InputError, JobError, SchemaError, UnavailableError
from latentfarm.job import Job
from latentfarm.ledger import Lease, Ledger
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.manifest import ManifestReader
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.metrics import Metrics

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
#: seconds for which nobody is asked again, once there was nothing to lease
_DRY_S = 0.2


class Prefetcher:
    """Brings jobs to the engine's door, one round of leasing at a time, so that no step waits for Redis or the store.

    ``ask``, ``take`` and ``wait`` are for the engine's thread. ``prepare`` makes a job ready for the engine, ``fail``
    records that it cannot be rendered.
    """

    def __init__(  # noqa: PLR0913 (named, and each a thing of its own)
        self,
        *,
        ledger: Ledger,
        bucket: Bucket,
        leases: LeaseRenewer,
        prepare: Callable[[Job], ImageState],
        fail: Callable[[Lease, JobError], None],
        metrics: Metrics,
        model: str,
        worker: str,
        lease_s: float,
    ) -> None:
        self._ledger = ledger
        self._manifest = ManifestReader(bucket)
        self._leases = leases
        self._prepare = prepare
        self._fail = fail
        self._metrics = metrics
        self._model, self._worker, self._lease_s = model, worker, lease_s
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stage")
        self._round: Future[None] | None = None
        #: leased, with the time of it; the store did not answer yet
        self._unread: deque[tuple[Lease, float]] = deque()
        self._ready: deque[tuple[Lease, ImageState]] = deque()
        self._pause_s, self._next_try = _FIRST_PAUSE_S, 0.0
        self._dry_until = 0.0
        self._request = uuid.uuid4().hex
        self._closed = False

    @property
    def held(self) -> list[Lease]:
        """The leases of jobs that the engine has not taken yet; for any thread."""
        return [lease for lease, _ in (*tuple(self._unread), *tuple(self._ready))]

    @property
    def ready(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._ready)

    @property
    def working(self) -> bool:
        """Whether a round is under way."""
        return self._round is not None and not self._round.done()

    @property
    def held_up(self) -> bool:
        """Whether Redis or the store did not answer the last round."""
        return time.monotonic() < self._next_try or bool(self._unread)

    @property
    def dry(self) -> bool:
        """Whether there was nothing to lease just now."""
        return time.monotonic() < self._dry_until

    def ask(self, room: int) -> None:
        """Begin a round for up to ``room`` more jobs, unless one is under way or the last has just come back empty."""
        if self.working or self._closed or time.monotonic() < self._next_try:
            return
        if self._unread or (room > 0 and not self.dry):
            self._round = self._pool.submit(self._work, room)

    def take(self) -> list[ImageState]:
        """Return what is ready and still ours."""
        taken = []
        while self._ready:
            lease, image = self._ready.popleft()
            if self._leases.holds(lease):
                taken.append(image)
        return taken

    def wait(self, timeout_s: float) -> None:
        """Wait for the round under way."""
        if self._round is not None:
            try:
                self._round.exception(timeout_s)
            except TimeoutError:
                return

    def stop(self) -> None:
        """Lease no more; what a round under way still leases goes back uncharged."""
        self._closed = True

    def close(self) -> None:
        """Stop, and wait for the round under way."""
        self.stop()
        self._pool.shutdown()

    # -- on its thread ---------------------------------------------------------------------------------------

    def _work(self, room: int) -> None:
        try:
            if not self._unread:
                self._lease(room)
            self._read()
        except (UnavailableError, SchemaError) as error:
            log.warning("cannot lease, trying again in %.1f s: %s", self._pause_s, error)
            self._metrics.retry("lease")
            self._next_try = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        except Exception:
            # the leases of what was not read run out, and somebody else tries
            log.exception("a round of leasing broke")
            self._unread.clear()
            self._next_try = time.monotonic() + _LONGEST_PAUSE_S
        else:
            self._pause_s = _FIRST_PAUSE_S

    def _lease(self, room: int) -> None:
        # the same until it is answered: leases whose answer was lost on the way are not lost with it
        request = self._request
        leases = self._ledger.lease(self._model, self._worker, room, lease_s=self._lease_s, request=request)
        self._request = uuid.uuid4().hex
        if not leases:
            self._dry_until = time.monotonic() + _DRY_S
        self._leases.hold(leases)
        now = time.perf_counter()
        self._unread.extend((lease, now) for lease in leases)
        if self._closed:
            self._ledger.release(self._leases.give_up(lease.name for lease in leases))

    def _read(self) -> None:
        while self._unread:
            lease, leased = self._unread[0]
            if self._leases.holds(lease):
                try:
                    image = self._prepare(self._manifest.job(lease.batch, lease.index))
                except JobError as error:
                    self._fail(lease, error)
                except (InputError, MissingObjectError) as error:
                    self._fail(lease, JobError("manifest", str(error)))
                else:
                    image.queued = leased
                    # first there, then gone here: whoever looks meanwhile sees it twice rather than never
                    self._ready.append((lease, image))
            self._unread.popleft()

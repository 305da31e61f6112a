"""Report how far interactive images are, and store partial images, without delay for the engine or its jobs.

Nothing is retried: a report that is lost does no harm, because the next one replaces it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from threading import Event, Lock
from typing import cast

from latentfarm.errors import UnavailableError
from latentfarm.image_formats import IMAGE_FORMATS
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.live_reports import LiveReport
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import preview_key
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.engine.outcomes import Preview
from latentfarm_worker.images.encode import encode_image
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.threads import Threads

log = logging.getLogger(__name__)

#: seconds between two messages about steps
_PAUSE_S = 0.2
#: seconds after which a wait for reports counts as success of the thread, whose failures would stay otherwise
_IDLE_S = 5.0
_PREVIEW_THREADS = 2
#: partial images that may wait for the bucket; beyond it they are left out
_MAX_WAITING = 16


class LiveReporter:
    """Publishes live reports on threads of its own. Thread-safe.

    Args:
        ledger: the ledger, whose subscribers get the reports.
        bucket: the bucket for partial images.
        leases: the leases of the images; those that are lost are not reported.
        threads: starts the threads.
    """

    def __init__(self, *, ledger: Ledger, bucket: Bucket, leases: LeaseRenewer, threads: Threads) -> None:
        self._ledger = ledger
        self._bucket = bucket
        self._leases = leases
        self._lock = Lock()
        #: by lease, the newest step that is not reported yet
        self._steps: dict[Lease, LiveReport] = {}
        self._waiting = 0
        self._wake, self._closing = Event(), Event()
        self._pool = threads.pool("preview", _PREVIEW_THREADS)
        self._loop = threads.loop("live", self._publish_steps, interval_s=0)

    def report(self, engine: Engine) -> None:
        """Report what a step of the engine brought: partial images, and the steps of images that clients wait for."""
        for preview in engine.take_previews():
            self.store_preview(cast("Lease", preview.handle), preview)
        self.report_steps((cast("Lease", handle), step, steps) for handle, step, steps in engine.interactive_progress())

    def report_steps(self, progress: Iterable[tuple[Lease, int, int]]) -> None:
        """Report the steps of images that are done, and how many they have."""
        reports = {lease: LiveReport(lease.name, step, steps) for lease, step, steps in progress}
        if reports:
            with self._lock:
                self._steps |= reports
            self._wake.set()

    def store_preview(self, lease: Lease, preview: Preview) -> None:
        """Store a partial image and report its key."""
        with self._lock:
            if self._waiting >= _MAX_WAITING:
                log.warning("a partial image is left out: %d wait for the bucket", self._waiting)
                return
            self._waiting += 1
        self._pool.submit(self._store_preview, lease, preview, on_error=lambda _: self._end_preview())

    def close(self) -> None:
        """Report nothing more, and end the threads."""
        self._closing.set()
        self._wake.set()
        self._loop.stop(1.0)
        self._pool.close()

    def _publish_steps(self) -> None:
        self._wake.wait(_IDLE_S)
        self._wake.clear()
        with self._lock:
            steps, self._steps = self._steps, {}
        if reports := [report for lease, report in steps.items() if self._leases.holds(lease)]:
            self._publish(reports)
            self._closing.wait(_PAUSE_S)

    def _store_preview(self, lease: Lease, preview: Preview) -> None:
        if self._leases.holds(lease) and not self._closing.is_set():
            image_format = IMAGE_FORMATS[preview.job.image_format]
            body = encode_image(preview.pixels, image_format.name, metadata={})
            key = preview_key(lease.batch, lease.index, lease.epoch, preview.number, image_format)
            try:
                self._bucket.put(key, body, content_type=image_format.content_type)
            except UnavailableError as error:
                log.warning("a partial image is left out: %s", error)
            else:
                self._publish([LiveReport(lease.name, preview.step, preview.steps, key, preview.number)])
        self._end_preview()

    def _end_preview(self) -> None:
        with self._lock:
            self._waiting -= 1

    def _publish(self, reports: list[LiveReport]) -> None:
        try:
            self._ledger.publish_live(reports)
        except UnavailableError as error:
            # the renewals and the heartbeat report the outage
            log.debug("live reports are lost: %s", error)

"""Report what is on the device while a client watches: each image's job and step, and a small preview of it.

Without a client, all that the engine's thread does is to read ``watched`` once in each step.
"""

from __future__ import annotations

import base64
import logging
import time
from threading import Lock
from typing import cast

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from latentfarm.errors import UnavailableError
from latentfarm.ledger import Lease, Ledger, Slot, SlotsReport
from latentfarm.ledger.worker_signals import WATCHED_S
from latentfarm_worker import device_errors
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.engine.latent_colors import LatentColors
from latentfarm_worker.engine.outcomes import first_line
from latentfarm_worker.engine.slot_views import SlotViews
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.threads import Threads

log = logging.getLogger(__name__)

#: seconds between two reports
_INTERVAL_S = 1.0
_QUALITY = 85
#: bytes of one preview, and of all in one report
_MAX_PREVIEW_BYTES, _MAX_REPORT_BYTES = 4_000, 128_000
#: pixels to a side of the smallest preview
_MIN_SIDE = 8


class SlotReporter:
    """Publishes reports of slots on a thread of its own.

    Args:
        engine: the engine; only ``report`` uses it, except for what is thread-safe.
        ledger: the ledger, whose subscribers get the reports.
        leases: the leases of the images; those that are lost are not reported.
        worker: name of the worker in the ledger.
        threads: starts the thread.

    Attributes:
        watched: whether a client may be watching. While it is true, ``report`` must be called after each step.
    """

    def __init__(self, engine: Engine, *, ledger: Ledger, leases: LeaseRenewer, worker: str, threads: Threads) -> None:
        self._engine = engine
        self._ledger = ledger
        self._leases = leases
        self._worker = worker
        self._lock = Lock()
        self.watched = False
        #: times of ``time.monotonic()``
        self._until = self._due = 0.0
        #: whether a report waits for the thread or for Redis
        self._publishing = False
        self._colors = LatentColors()
        self._pool = threads.pool("slots", 1)

    def on_watched(self) -> None:
        """Report from now on, for the time that a signal holds. Thread-safe."""
        with self._lock:
            self._until = time.monotonic() + WATCHED_S
            self.watched = True
        if not self._engine.slots_taken:
            # no step follows, so that `report` is not called
            self._submit(SlotViews((), {}, ()))

    def report(self) -> None:
        """Report the slots if the last report is old enough. Only the engine's thread may call it.

        Raises:
            Exception: the device is lost to this process.
        """
        now = time.monotonic()
        with self._lock:
            self.watched = now < self._until
        try:
            if self.watched and now >= self._due and not self._publishing:
                self._due = now + _INTERVAL_S
                self._engine.view_slots()
            if views := self._engine.slot_viewer.take():
                self._submit(views)
        except Exception as error:
            # the jobs go on without it
            if device_errors.is_fatal(error):
                raise
            log.warning("a report of slots is left out: %s", first_line(error))

    def close(self) -> None:
        """End the thread."""
        self._pool.close()

    def _submit(self, views: SlotViews) -> None:
        self._publishing = True
        self._pool.submit(self._publish, views, on_error=lambda _: self._end_publishing())

    def _publish(self, views: SlotViews) -> None:
        for each in views.decoded:
            self._colors.add(each.latents, each.pixels)
        held = [at for at, slot in enumerate(views.slots) if self._leases.holds(cast("Lease", slot.handle))]
        limit = min(_MAX_PREVIEW_BYTES, _MAX_REPORT_BYTES // max(1, len(held)))
        slots = tuple(self._slot(views, at, limit) for at in held)
        try:
            self._ledger.publish_slots(SlotsReport(self._worker, slots))
        except UnavailableError as error:
            # the renewals and the heartbeat report the outage
            log.debug("a report of slots is lost: %s", error)
        self._end_publishing()

    def _slot(self, views: SlotViews, at: int, limit: int) -> Slot:
        view, latents = views.slots[at], views.estimates.get(at)
        pixels = None if latents is None else self._colors.image(latents)
        preview = "" if pixels is None else base64.b64encode(encode_preview(pixels, limit)).decode()
        return Slot(cast("Lease", view.handle).name, view.step, view.steps, preview)

    def _end_publishing(self) -> None:
        self._publishing = False


def encode_preview(pixels: NDArray[np.uint8], limit: int) -> bytes:
    """Return an image, uint8 (height, width, 3), as a JPEG of at most ``limit`` bytes, smaller if it must be."""
    while True:
        body: bytes = simplejpeg.encode_jpeg(pixels, quality=_QUALITY, colorspace="RGB", colorsubsampling="444")
        if len(body) <= limit or min(pixels.shape[:2]) < 2 * _MIN_SIDE:
            return body
        pixels = np.ascontiguousarray(pixels[::2, ::2])

"""Removes what has expired: files, outputs of batches, and what uploads have left whose server died.

Every server sweeps each hour. Two sweeps at once do no harm. Each minute it continues deletions of batches that were
cut off by the end of another process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio

from latentfarm.errors import LatentfarmError
from latentfarm.farm import Farm
from latentfarm.server.openai import stored_batches, stored_files
from latentfarm.server.openai.batch_state import find_batch
from latentfarm.server.openai.ids import created_at, stem_of
from latentfarm.storage.deletion import continue_deletions, delete_batch
from latentfarm.storage.multipart_upload import abort_uploads_before

log = logging.getLogger(__name__)

#: seconds from one check of deletions to the next, and from one sweep to the next; both begin after the first
_DELETIONS_S, _SWEEPS_S = 60.0, 3_600.0
#: seconds after which an upload has ended, one way or the other
_LONGEST_UPLOAD_S = 24 * 3_600


class Sweeper:
    """Sweeps on a thread of its own until the server ends."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._ending = threading.Event()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Sweep in the background."""
        thread = threading.Thread(target=self._run, name="sweep", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ending.set()
            # a daemon: what it has not removed, a later sweep removes
            await anyio.to_thread.run_sync(thread.join, 1.0)

    def _run(self) -> None:
        swept = -_SWEEPS_S
        while not self._ending.wait(_DELETIONS_S):
            try:
                self._continue_deletions()
                if time.monotonic() - swept >= _SWEEPS_S:
                    swept = time.monotonic()
                    sweep_files(self._farm)
                    sweep_batches(self._farm)
            except _EndingError:
                return
            except LatentfarmError as error:
                log.warning("what has expired is removed later: %s", error)
            except Exception:
                log.exception("what has expired is removed later")

    def _continue_deletions(self) -> None:
        def check(_removed: int) -> None:
            if self._ending.is_set():
                raise _EndingError

        for batch in continue_deletions(self._farm.ledger, self._farm.bucket, progress=check):
            log.info("batch %s is deleted; its deletion was cut off before", batch)


class _EndingError(Exception):
    """The server ends."""


def sweep_files(farm: Farm) -> None:
    """Remove files that have expired, and the remains of uploads."""
    bucket, now = farm.bucket, farm.ledger.now_s()
    began = now - _LONGEST_UPLOAD_S
    for file, whole in stored_files.all_files(bucket):
        died = not whole and created_at(stem_of(file)) < began
        if died or (whole and stored_files.read_record(bucket, file, now) is None):
            stored_files.delete_file(bucket, file)
    abort_uploads_before(bucket, stored_files.PREFIX, datetime.fromtimestamp(began, UTC))


def sweep_batches(farm: Farm) -> None:
    """Remove batches whose output has expired, and the records of batches that were deleted.

    Batches that no server submits are queued again, because their state is read.
    """
    now = farm.ledger.now_s()
    for batch in stored_batches.batch_ids(farm.bucket):
        if found := find_batch(farm, batch):
            stored, state = found
            ended_at = state.completed_at or state.cancelled_at
            if stored.output_expires_s is None or ended_at is None or ended_at + stored.output_expires_s > now:
                continue
            delete_batch(farm.ledger, farm.bucket, batch)
        stored_batches.remove_batch(farm.bucket, batch)

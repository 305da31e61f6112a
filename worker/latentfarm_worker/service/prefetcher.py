"""Lease jobs ahead of the engine, read them from the manifest and prepare them, on a thread of their own."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from threading import Lock
from typing import Protocol

from latentfarm.errors import InputError, JobError, SchemaError, UnavailableError
from latentfarm.job import Job
from latentfarm.ledger import Lease
from latentfarm.monitoring.logs import log_fields
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import part_of
from latentfarm.storage.manifest import ManifestReader
from latentfarm_worker import device_errors
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.job_inputs import JobInputs
from latentfarm_worker.input_images.supply import InputSupply, InputUnavailableError, PendingInputs
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.lease_requests import LeaseRequests
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.prompts_ahead import prompts_after
from latentfarm_worker.service.threads import Threads
from latentfarm_worker.text_encoders.prompt import Prompt

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
#: seconds without another request after the ledger had no job
_EMPTY_PAUSE_S = 0.2
#: seconds in which a part of a manifest is read again: a store may answer 404 just after a put, or cut an object off
_PATIENCE_S = 30.0
#: jobs that may wait for parts of manifests; beyond it no job is leased
_MAX_POSTPONED = 64


class Fail(Protocol):
    """Records that a job failed by its own fault."""

    def __call__(self, lease: Lease, error: JobError, *, retry: bool = False) -> None:
        """Record it, off this thread."""


class _PostponedError(Exception):
    """A job's part of the manifest cannot be read now, or its inputs are not here yet."""


@dataclass(eq=False)
class _Unread:
    """A leased job that is not read yet, or waits for its inputs."""

    lease: Lease
    #: time.perf_counter()
    leased_s: float
    inputs: PendingInputs | None = None

    @property
    def part(self) -> tuple[str, int]:
        return self.lease.batch, part_of(self.lease.index)


@dataclass
class _Absence:
    """A part of a manifest that cannot be read; times are of time.monotonic()."""

    since: float
    tried: float
    pause_s: float = _FIRST_PAUSE_S

    @property
    def retry_at(self) -> float:
        return self.tried + self.pause_s


class PrefetchState(Enum):
    """What the prefetcher can do for the engine now, the first that applies."""

    #: a round of leasing is running
    WORKING = auto()
    #: prepared jobs wait for the engine
    READY = auto()
    #: Redis or the bucket was unavailable in the last round
    BACKING_OFF = auto()
    #: the ledger had no job just now
    QUEUE_EMPTY = auto()
    IDLE = auto()


class Prefetcher:
    """Lease and prepare jobs in rounds, so that no step of the engine waits for Redis or the bucket.

    ``take`` is for the engine's thread, the rest is thread-safe.

    Args:
        requests: leases jobs.
        bucket: the bucket with the manifests.
        inputs: makes the jobs' input images.
        leases: renews the leases until the jobs have ended.
        prepare: makes a job ready for the engine; it gets the lease as the handle.
        fail: records that a job cannot be rendered.
        on_device_lost: called with a device error that this process cannot recover from.
        on_end: called after each round.
        metrics: counts retries.
        threads: starts the thread.
        urgent: lease only urgent jobs.
        prompts_of: tokenizes the rows behind a job, for text encoders that are moved [default: they are not].
        patience_s: seconds until a job fails whose part of the manifest cannot be read.

    Attributes:
        paused: whether no round is started; what is leased stays.
    """

    def __init__(  # noqa: PLR0913 (all are collaborators, passed by name)
        self,
        *,
        requests: LeaseRequests,
        bucket: Bucket,
        inputs: InputSupply,
        leases: LeaseRenewer,
        prepare: Callable[[Job, Lease, JobInputs], ImageState],
        fail: Fail,
        on_device_lost: Callable[[Exception], None],
        on_end: Callable[[], object],
        metrics: Metrics,
        threads: Threads,
        urgent: bool = False,
        prompts_of: Callable[[Job], Sequence[Prompt]] | None = None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._requests = requests
        self._manifest = ManifestReader(bucket)
        self._inputs = inputs
        self._leases = leases
        self._prepare = prepare
        self._fail = fail
        self._on_device_lost = on_device_lost
        self._on_end = on_end
        self._metrics = metrics
        self._urgent = urgent
        self._prompts_of = prompts_of
        self._patience_s = patience_s
        self._pool = threads.pool("prefetch-urgent" if urgent else "prefetch", 1)
        self._working = False
        #: of the flag above
        self._starting = Lock()
        #: doorbells so far, and how many of them the ledger's last answer without further jobs came after
        self._rung, self._answered = 0, 0
        #: of the two collections below
        self._lock = Lock()
        self._unread: list[_Unread] = []
        self._ready: deque[tuple[Lease, ImageState]] = deque()
        #: parts of manifests that cannot be read now, replaced at each change
        self._absent: dict[tuple[str, int], _Absence] = {}
        self._pause_s, self._retry_at = _FIRST_PAUSE_S, 0.0
        self._empty_until = 0.0
        self._stopped = False
        self.paused = False

    @property
    def state(self) -> PrefetchState:
        # the order matters: a round that ends between two checks has filled `_ready`
        if self._working:
            return PrefetchState.WORKING
        if self._ready:
            return PrefetchState.READY
        now = time.monotonic()
        if self._unread or now < self._retry_at:
            return PrefetchState.BACKING_OFF
        return PrefetchState.QUEUE_EMPTY if now < self._empty_until else PrefetchState.IDLE

    @property
    def leases(self) -> list[Lease]:
        """The leases of jobs that the engine has not taken yet."""
        with self._lock:
            return [*(each.lease for each in self._unread), *(lease for lease, _ in self._ready)]

    @property
    def prefetched(self) -> int:
        """Number of jobs that the engine can soon take.

        These are all but those whose part of the manifest cannot be read, or whose inputs come slowly.
        """
        with self._lock:
            waiting = (each.part in self._absent or (each.inputs and each.inputs.slow) for each in self._unread)
            return len(self._ready) + sum(not each for each in waiting)

    def on_doorbell(self) -> None:
        """Forget that the ledger had no job just now, so that the next request is not refused."""
        self._rung += 1
        self._empty_until = 0.0

    @property
    def wanted(self) -> bool:
        """Whether the ledger may have a job that was announced by a doorbell."""
        return self._rung > self._answered

    def request(self, count: int, *, alone: bool = True, others_first: bool = False, delay_s: float = 0.0) -> None:
        """Start a round for up to ``count`` more jobs, unless one is running or a pause has not ended.

        ``alone``: one of them may be a job that must run alone; with ``others_first`` only if there are no others.
        ``delay_s``: seconds to leave the jobs to other workers.
        """
        now = time.monotonic()
        with self._starting:
            if self._working or self._stopped or self.paused or now < self._retry_at:
                return
            can_lease = count > 0 and now >= self._empty_until and len(self._unread) < _MAX_POSTPONED
            if not can_lease and not self._due(now):
                return
            self._working = True
        self._pool.submit(self._round, count, alone, others_first, delay_s, on_error=lambda _: self._end_round())

    def take(self) -> list[ImageState]:
        """Return the prepared jobs whose lease is still held."""
        with self._lock:
            taken = list(self._ready)
            self._ready.clear()
        return [image for lease, image in taken if self._leases.holds(lease)]

    def stop(self) -> None:
        """Start no more rounds. Jobs that a running round still leases are released uncharged."""
        self._stopped = True

    def close(self) -> None:
        """Stop, and wait for the running round."""
        self.stop()
        self._pool.close()

    # -- on the prefetch thread ------------------------------------------------------------------------------

    def _round(self, count: int, alone: bool, others_first: bool, delay_s: float) -> None:  # noqa: FBT001 - positional
        try:
            if delay_s:
                time.sleep(delay_s)
            if not self._due(time.monotonic()) and count > 0:
                self._lease(count, alone=alone, others_first=others_first)
            self._read()
            self._pause_s = _FIRST_PAUSE_S
            self._pool.succeed()
        except (UnavailableError, SchemaError) as error:
            log.warning("cannot lease, retrying in %.1f s: %s", self._pause_s, error)
            self._back_off(error)
        except Exception as error:  # noqa: BLE001 - what was leased stays, and the next round goes on with it
            self._pool.report(error)
            self._back_off(error)
        finally:
            self._end_round()

    def _back_off(self, error: Exception) -> None:
        self._metrics.retry("lease", error)
        self._retry_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _end_round(self) -> None:
        self._working = False
        self._on_end()

    def _lease(self, count: int, *, alone: bool, others_first: bool) -> None:
        rung = self._rung
        leases = self._requests.lease(count, alone=alone, others_first=others_first, urgent=self._urgent)
        if len(leases) < count:
            self._answered = rung
        if not leases and rung == self._rung:
            self._empty_until = time.monotonic() + _EMPTY_PAUSE_S
        now = time.perf_counter()
        with self._lock:
            self._unread.extend(_Unread(lease, now) for lease in leases)
        if self._stopped:
            self._requests.give_back(leases)

    def _due(self, now: float) -> list[_Unread]:
        """Return the jobs to read now: all but those whose part could not be read just before, or that have to wait."""
        absent = self._absent
        with self._lock:
            return [
                each
                for each in self._unread
                if (each.part not in absent or now >= absent[each.part].retry_at)
                and (each.inputs is None or each.inputs.due)
            ]

    def _read(self) -> None:
        for each in self._due(time.monotonic()):
            try:
                image = self._prepared(each) if self._leases.holds(each.lease) else None
            except _PostponedError:
                continue
            with self._lock:
                # at one moment, so that `leases` always has it
                self._unread.remove(each)
                if image is not None:
                    image.queued = each.leased_s
                    self._ready.append((each.lease, image))

    def _prepared(self, each: _Unread) -> ImageState | None:
        """Return a job's image, or None if the job fails."""
        lease = each.lease
        try:
            self._load_part(each)
            job = self._manifest.job(lease.batch, lease.index, lease.created_ms)
            image = self._prepare(job, lease, self._inputs_of(each, job))
            if self._prompts_of is not None:
                image.following = prompts_after(lease, self._manifest, self._prompts_of)
            return image
        except _PostponedError:
            raise
        except JobError as error:
            self._fail(lease, error, retry=isinstance(error, InputUnavailableError))
        except (InputError, MissingObjectError) as error:
            self._fail(lease, JobError("manifest_unreadable", str(error)))
        except UnavailableError:
            raise
        except Exception as error:
            if device_errors.is_fatal(error):
                # no fault of this job: the device is lost to the whole process
                self._on_device_lost(error)
                raise
            log.exception("%s cannot be prepared", lease.name, extra=log_fields(lease.name))
            self._fail(lease, JobError.unexpected("prepare_error", error), retry=True)
        return None

    def _inputs_of(self, each: _Unread, job: Job) -> JobInputs:
        """Return the input images of a job.

        Raises:
            _PostponedError: they are not here yet; as each of them comes, a round is started.
        """
        if each.inputs is None:
            each.inputs = self._inputs.begin(job, lambda: self.request(0))
        inputs = each.inputs.result()
        if inputs is None:
            raise _PostponedError
        return inputs

    def _load_part(self, each: _Unread) -> None:
        """Read the part of a job's manifest.

        Raises:
            _PostponedError: it cannot be read now.
            Exception: it could not be read for ``patience_s``.
        """
        absence, now = self._absent.get(each.part), time.monotonic()
        if absence is not None and now < absence.retry_at:
            # another job of the part was tried in this round
            raise _PostponedError
        try:
            self._manifest.load(each.lease.batch, each.lease.index, each.lease.created_ms)
        except Exception as error:
            if isinstance(error, UnavailableError) and not isinstance(error, MissingObjectError):
                raise
            if absence is not None and absence.since + self._patience_s <= now < absence.retry_at + self._patience_s:
                # at once for the next job of the part
                absence.tried = now - absence.pause_s
                raise
            self._postpone(each, error)
            raise _PostponedError from error
        if absence is not None:
            self._absent = {part: other for part, other in self._absent.items() if part != each.part}

    def _postpone(self, each: _Unread, error: Exception) -> None:
        """Note that a job's part cannot be read now."""
        now, absence = time.monotonic(), self._absent.get(each.part)
        if absence is None or now >= absence.retry_at + self._patience_s:
            absence = _Absence(since=now, tried=now)
        else:
            absence = _Absence(absence.since, now, min(2 * absence.pause_s, _LONGEST_PAUSE_S))
        kept = {part: other for part, other in self._absent.items() if now < other.retry_at + self._patience_s}
        self._absent = {**kept, each.part: absence}
        if not isinstance(error, InputError | MissingObjectError):
            self._pool.report(error)
        name, pause_s = each.lease.name, absence.pause_s
        log.warning("the manifest of %s cannot be read, retrying in %.1f s: %s", name, pause_s, error)

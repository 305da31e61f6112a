"""One worker's way from a lease to a commit: lease -> engine -> encode -> put -> commit.

The engine runs on the thread that calls ``render_all``; pictures are encoded, stored and committed on others while
the next steps run; leases are renewed on a third kind.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import BoundedSemaphore, Event, Lock
from typing import Any, TypeVar

import torch

from latentfarm import schedulers
from latentfarm.bucket import Bucket, MissingObjectError, image_key, part_of, trace_key
from latentfarm.errors import InputError, JobError, UnavailableError
from latentfarm.job import Job
from latentfarm.ledger import Lease, Ledger
from latentfarm.manifest import ManifestReader
from latentfarm.results import flush_part
from latentfarm_worker.engine import Engine, Failed, Rendered
from latentfarm_worker.images import CONTENT_TYPE, encode_png, parameters_text
from latentfarm_worker.leases import LeaseKeeper
from latentfarm_worker.meter import Meter, work_of
from latentfarm_worker.trace import Tracer

T = TypeVar("T")
log = logging.getLogger(__name__)

_STORE_THREADS = 4
#: finished pictures that wait for the store; beyond it no step is made, so memory stays bounded
_MAX_BACKLOG = 64
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0


class GaveUpError(Exception):
    """The worker stops, or a lease is lost, before Redis or the store answered."""


class Renderer:
    """A resident pipeline that renders whatever the ledger leases it.

    ``render_all`` is for one thread; ``stop`` may be called from any.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        bucket: Bucket,
        engine: Engine,
        tracer: Tracer,
        model: str,
        worker: str,
        lease_s: float,
        embed_metadata: bool = True,
    ) -> None:
        self.model = model
        self.worker = worker
        self._ledger = ledger
        self._bucket = bucket
        self._engine = engine
        self._tracer = tracer
        self._lease_s = lease_s
        self._embed_metadata = embed_metadata
        self._manifest = ManifestReader(bucket)
        self._leases = LeaseKeeper(ledger, lease_s=lease_s)
        self.meter = Meter()
        self._stop = Event()
        # the engine is for one thread: a second doorbell heard at once waits, then finds nothing left to do
        self._turn = Lock()
        self._store_pool = ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="store")
        self._backlog = BoundedSemaphore(_MAX_BACKLOG)

    def render_all(self) -> int:
        """Render until the ledger has no more job of the model, or ``stop``; return how many pictures were made."""
        made = 0
        with self._turn, suppress(GaveUpError):
            while not self._stop.is_set():
                self._abandon_lost()
                self._lease_what_fits()
                if not self._engine.busy:
                    break
                for outcome in self._step():
                    made += 1
                    self._hand_on(outcome)
        return made

    def _step(self) -> list[Rendered | Failed]:
        """Make one step; if it breaks, charge every job in it an attempt, so that none is leased for ever."""
        began = time.perf_counter()
        try:
            return self._engine.step()
        except Exception as error:
            log.exception("a step broke")
            for job in self._engine.clear():
                self._tracer.forget(job.name)
                if lease := self._leases.get(job.name):
                    failure = JobError("render", f"{type(error).__name__}: {error}")
                    self._store_pool.submit(self._fail, lease, failure, retry=True)
            return []
        finally:
            self.meter.add(busy_s=time.perf_counter() - began)

    def stop(self) -> None:
        """Let ``render_all`` return after the step that runs now."""
        self._stop.set()

    def close(self) -> None:
        """Store what is finished, give back what is not, uncharged, and stop every thread."""
        self._stop.set()
        with self._turn:
            self._engine.clear()
        # pictures first: what the store still takes need not be rendered again
        self._store_pool.shutdown()
        unfinished = self._leases.held()
        self._leases.close()
        try:
            log.info("gave %d unfinished jobs back", self._ledger.release(unfinished))
        except UnavailableError as error:
            log.warning("%d jobs could not be given back, their leases will run out: %s", len(unfinished), error)

    # -- leasing ---------------------------------------------------------------------------------------------

    def _abandon_lost(self) -> None:
        for name in self._leases.take_lost():
            self._engine.cancel(name)
            self._tracer.forget(name)

    def _lease_what_fits(self) -> None:
        if not self._engine.free:
            return
        leases = self._patiently(
            "lease",
            lambda: self._ledger.lease(self.model, self.worker, self._engine.free, lease_s=self._lease_s),
        )
        self._leases.hold(leases)
        for lease in leases:
            try:
                self._engine.admit(self._patiently("read the manifest", partial(self._read, lease)))
            except JobError as error:
                self._store_pool.submit(self._fail, lease, error)

    def _read(self, lease: Lease) -> Job:
        try:
            return self._manifest.job(lease.batch, lease.index)
        except (InputError, MissingObjectError) as error:
            raise JobError("manifest", str(error)) from error

    # -- after the last step ---------------------------------------------------------------------------------

    def _hand_on(self, outcome: Rendered | Failed) -> None:
        lease = self._leases.get(outcome.job.name)
        if lease is None or isinstance(outcome, Failed):
            self._tracer.forget(outcome.job.name)
        if lease is None:
            return
        if isinstance(outcome, Failed):
            self._store_pool.submit(self._fail, lease, outcome.error)
            return
        self._backlog.acquire()
        self._store_pool.submit(self._store, lease, outcome, self._tracer.take(outcome.job, outcome.pixels))

    def _store(self, lease: Lease, picture: Rendered, strip: torch.Tensor | None) -> None:
        """Encode, put and commit one picture; its pixels are kept until the store has them."""
        try:
            began = time.perf_counter()
            body = encode_png(picture.pixels, metadata=self._metadata(picture))
            encoded = time.perf_counter()
            stored = self._put(lease, image_key(lease.batch, lease.index, lease.epoch), body)
            timings = {**picture.timings, "png": encoded - began, "put": time.perf_counter() - encoded}
            rounded = {name: round(seconds, 6) for name, seconds in timings.items()}
            receipt = {**stored, **self._provenance(picture), "worker": self.worker, "timings": rounded}
            if strip is not None:
                key = trace_key(lease.batch, lease.index, lease.epoch)
                receipt["trace"] = self._put(lease, key, encode_png(strip, metadata={}))
            outcome = self._patiently("commit", lambda: self._ledger.commit(lease, receipt), lease=lease)
            self._measure(picture, len(body))
            self._after(lease, outcome)
            if outcome == "superseded":
                self._discard(receipt)
            self._leases.drop(lease)
        except GaveUpError:
            # the lease is still held: ``close`` gives the job back, uncharged
            log.warning("%s is not stored", lease.name)
        except Exception:
            # no longer renewed: the sweep charges the job and gives it to the next worker
            log.exception("%s could not be stored", lease.name)
            self._leases.drop(lease)
        finally:
            self._backlog.release()

    def _discard(self, receipt: dict[str, Any]) -> None:
        """Remove what nobody will want; if that fails, the flush of the part tries again."""
        with suppress(UnavailableError):
            self._bucket.delete([each["key"] for each in (receipt, receipt.get("trace")) if each])

    def _measure(self, picture: Rendered, size_bytes: int) -> None:
        pixels = picture.width * picture.height
        self.meter.add(images=1, work=work_of(picture.job, pixels=pixels), size_bytes=size_bytes, pixels=pixels)

    def _put(self, lease: Lease, key: str, body: bytes) -> dict[str, Any]:
        """Put an object; return what a receipt says of it."""
        self._patiently("put", lambda: self._bucket.put(key, body, content_type=CONTENT_TYPE), lease=lease)
        return {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}

    def _fail(self, lease: Lease, error: JobError, *, retry: bool = False) -> None:
        try:
            log.warning("%s failed: %s: %s", lease.name, error.code, error)
            record = {"code": error.code, "message": str(error), "worker": self.worker}
            outcome = self._patiently("fail", lambda: self._ledger.fail(lease, record, retry=retry), lease=lease)
            self._after(lease, outcome)
            self._leases.drop(lease)
        except GaveUpError:
            log.warning("that %s failed is not recorded", lease.name)

    def _after(self, lease: Lease, outcome: str) -> None:
        if outcome in {"stale", "superseded"}:
            log.warning("%s was leased elsewhere meanwhile; that worker's result counts", lease.name)
        if outcome == "full":
            self._patiently("flush", lambda: flush_part(self._ledger, self._bucket, lease.batch, part_of(lease.index)))

    def _metadata(self, picture: Rendered) -> dict[str, str]:
        """Return the text chunks of a PNG. Nothing of when or where: the same job gives the same bytes."""
        if not self._embed_metadata:
            return {}
        text = parameters_text(
            picture.job,
            width=picture.width,
            height=picture.height,
            scheduler=picture.scheduler,
            model=self.model,
            model_digest=self._engine.family.model_digest,
        )
        receipt = {"job": picture.job.name, **self._provenance(picture)}
        return {"parameters": text, "latentfarm": json.dumps(receipt, ensure_ascii=False)}

    def _provenance(self, picture: Rendered) -> dict[str, Any]:
        """Return what the picture's bytes depend on."""
        family = self._engine.family
        job = picture.job
        return {
            "request": {
                **job.request(),
                "width": picture.width,
                "height": picture.height,
                # a short name may stand for options: what is written down needs no table of ours
                "scheduler": picture.scheduler,
                "scheduler_options": {**_named_options(job), **job.scheduler_options},
            },
            "model": self.model,
            "model_digest": family.model_digest,
            "plan": picture.plan_digest,
            "device": family.device.type,
            "dtype": str(family.dtype).removeprefix("torch."),
            "slots": picture.slots,
            "prompt_truncated": picture.prompt_truncated,
        }

    # -- patience --------------------------------------------------------------------------------------------

    def _patiently(self, what: str, action: Callable[[], T], *, lease: Lease | None = None) -> T:
        """Repeat until Redis and the store answer.

        Raises:
            GaveUpError: the worker was stopped, or the lease was lost, before they did.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return action()
            except MissingObjectError:
                raise
            except UnavailableError as error:
                log.warning("cannot %s, trying again in %.1f s: %s", what, pause_s, error)
            if self._stop.wait(pause_s) or (lease is not None and not self._leases.holds(lease)):
                raise GaveUpError(what)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _named_options(job: Job) -> dict[str, object]:
    return dict(schedulers.resolve(job.scheduler).options) if job.scheduler else {}

"""The ledger as Python sees it: one method a script, and the read-only questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, Self, cast

import redis

from latentfarm.batch_state import FINAL, BatchState, PausedBy
from latentfarm.errors import InputError
from latentfarm.job import JobState
from latentfarm.ledger.batch_summaries import BatchSummary, read_batch_summaries
from latentfarm.ledger.cancellations import Cancellations
from latentfarm.ledger.flush_queue import FlushQueue
from latentfarm.ledger.lua_scripts import Scripts
from latentfarm.ledger.records import (
    BatchRecord,
    CommitOutcome,
    FailOutcome,
    JobRecord,
    Lease,
    Reservation,
    Throughput,
    batch_record,
    decode,
    error_text,
    is_truncated,
    job_record,
    receipt_text,
)
from latentfarm.ledger.redis_errors import translate_errors
from latentfarm.ledger.workers import WorkerRecord, read_workers

CHUNK_JOBS = 1_000_000
#: a job that failed this often by its own fault, or was lost, runs no more
MAX_ATTEMPTS = 3
#: jobs in one lease, commit or retry: a script's arguments have their limit
MAX_JOBS_PER_CALL = 1_000
#: the share of failures, after the first 500 jobs, that pauses a batch
DEFAULT_BUDGET = 0.1
_SWEEP_LIMIT = 1_000
_SWEEP_LOCK_MS = 250
_WORKER_FORGOTTEN_S = 60
_WORKER_ALIVE_MS = 15_000
_PACE_SLOT_MS, _PACE_SLOTS = 10_000, 12


class Ledger(FlushQueue):
    """The record of every job, over one Redis client.

    Every method raises ``UnavailableError`` when Redis does not answer.
    """

    def __init__(self, client: redis.Redis, *, where: str) -> None:
        self.redis = client
        self.where = where
        self.scripts = Scripts(client)

    @classmethod
    def connect(cls, url: str) -> Self:
        """Return a ledger on ``redis://``, ``rediss://`` or ``unix://``; nothing is sent yet."""
        client = redis.Redis.from_url(
            url, socket_timeout=10, socket_connect_timeout=5, health_check_interval=10, decode_responses=False
        )
        return cls(client, where=_without_password(url))

    # -- a batch's life --------------------------------------------------------------------------------------

    def create_batch(
        self,
        batch: str,
        *,
        digest: str,
        model: str,
        priority: int = 0,
        weight: int = 1,
        budget: float = DEFAULT_BUDGET,
        canary: int = 0,
        webhook: str = "",
    ) -> Reservation:
        """Take the batch's name, or find who has it.

        Args:
            batch: the name.
            digest: what tells this batch from any other of its name.
            model: the alias of its model.
            priority: batches of a higher one are leased first.
            weight: its share among batches of one priority.
            budget: the share of failures that pauses it, 0 for none.
            canary: the jobs from this index on wait for ``resume``; 0 for none.
            webhook: the URL that is told of its completion, or empty.
        """
        args = [batch, digest, model, priority, weight, budget, canary, webhook]
        with translate_errors(self.where):
            answer, state, stored, parts_digest = self.scripts.create_batch(args=args)
        holder = decode(answer) if decode(answer) not in {"new", "same"} else digest
        fresh = decode(answer) == "new"
        return Reservation(
            digest=holder,
            state=BatchState(decode(state)),
            stored=int(stored),
            parts_digest=decode(parts_digest),
            fresh=fresh,
        )

    def append_jobs(
        self,
        batch: str,
        *,
        before: int,
        total: int,
        parts_digest: str,
        closed: bool,
        invalid: Mapping[int, dict[str, str]] | None = None,
    ) -> BatchState | Literal["conflict"]:
        """Let workers lease the jobs ``before`` to ``total - 1``, whose part lies in the bucket; return the state.

        ``invalid`` are those of them that have failed before they began, with their error. ``closed`` says that no more
        jobs come. The state is ``conflict`` when another submission of the batch has come further.
        """
        args: list[Any] = [batch, before, total, parts_digest, int(closed)]
        for index, error in (invalid or {}).items():
            args += [index, error_text(error)]
        with translate_errors(self.where):
            state = decode(self.scripts.append_jobs(args=args))
        if state == "conflict":
            return "conflict"
        return self._state(batch, state)

    def pause(self, batch: str, by: PausedBy, reason: str = "") -> BatchState:
        """Lease no more jobs of the batch; return its state."""
        return self._known(batch, self.scripts.pause, [batch, by, reason])

    def resume(self, batch: str) -> BatchState:
        """Let the batch go on; return its state."""
        return self._known(batch, self.scripts.resume, [batch])

    def cancel(self, batch: str) -> BatchState:
        """End the batch: nothing more of it is leased, and every lease on it is lost; return its state before."""
        return self._known(batch, self.scripts.cancel, [batch])

    def set_priority(self, batch: str, priority: int) -> BatchState:
        """Let the batch run before all of a lower priority; return its state."""
        return self._known(batch, self.scripts.set_priority, [batch, priority])

    def retry(self, batch: str, failed: Sequence[tuple[int, str]]) -> int:
        """Let failed jobs, given as (index, error code), run again; return how many do."""
        args: list[Any] = [batch]
        for index, code in failed:
            args += [index, code]
        with translate_errors(self.where):
            retried = int(self.scripts.retry(args=args))
        if retried < 0:
            raise InputError(f"batch {batch!r} is {self.batch(batch).state}; its jobs cannot run again")
        return retried

    def mark_deleting(self, batch: str) -> None:
        """Make sure that nobody works on the batch any more."""
        self.cancel(batch)
        self._known(batch, self.scripts.mark_deleting, [batch])

    def delete_batch(self, batch: str) -> None:
        """Remove every trace of a batch whose objects are gone."""
        with translate_errors(self.where):
            self.scripts.delete_batch(args=[batch])

    def _known(self, batch: str, script: Any, args: list[Any]) -> BatchState:
        with translate_errors(self.where):
            return self._state(batch, decode(script(args=args)))

    def _state(self, batch: str, state: str) -> BatchState:
        if not state:
            raise _unknown(batch)
        return BatchState(state)

    # -- a job's life ----------------------------------------------------------------------------------------

    def lease(self, model: str, worker: str, k: int, *, lease_s: float, request: str = "") -> list[Lease]:
        """Lease up to ``k`` jobs of the model, at most 1,000 at once.

        Args:
            model: the alias of the model.
            worker: who is to hold the leases.
            k: how many.
            lease_s: how long they are held.
            request: one line that no other call of this worker has, whatever process it is. Redis' answer may be lost
                on the way: called again with the same, the leases of the first call are returned, as far as they are
                still held; whatever ``k`` is then. Empty: every call leases anew.
        """
        with translate_errors(self.where):
            args = [model, worker, min(k, MAX_JOBS_PER_CALL), int(lease_s * 1000), request]
            found = self.scripts.lease(args=args)
        return [Lease(decode(batch), *numbers) for batch, *numbers in found]

    def renew(self, leases: Iterable[Lease], *, lease_s: float) -> set[str]:
        """Hold the leases for another ``lease_s``; return the names of those that are lost."""
        args: list[Any] = [int(lease_s * 1000)]
        for lease in leases:
            args += [lease.name, lease.epoch]
        with translate_errors(self.where):
            return {decode(name) for name in self.scripts.renew(args=args)}

    def commit(self, finished: Sequence[tuple[Lease, dict[str, Any]]]) -> list[CommitOutcome]:
        """Record 1 to 1,000 images in one call; return each one's outcome.

        ``stale``: the lease was lost. ``deleting``: the batch is being deleted.
        """
        args: list[Any] = []
        for lease, receipt in finished:
            kept = receipt_text({**receipt, "epoch": lease.epoch})
            args += [lease.name, lease.epoch, kept, int(is_truncated(receipt))]
        with translate_errors(self.where):
            return [cast("CommitOutcome", decode(outcome)) for outcome in self.scripts.commit(args=args)]

    def fail(self, lease: Lease, error: dict[str, str], *, retry: bool = False, delay_s: float = 0) -> FailOutcome:
        """Charge the job an attempt for its own fault: it failed, or runs again after ``delay_s`` if ``retry``."""
        args = [lease.name, lease.epoch, error_text(error), int(retry), MAX_ATTEMPTS, int(delay_s * 1000)]
        with translate_errors(self.where):
            return cast("FailOutcome", decode(self.scripts.fail(args=args)))

    def release(self, leases: Iterable[Lease]) -> int:
        """Give jobs back uncharged; return how many were still held."""
        args: list[Any] = []
        for lease in leases:
            args += [lease.name, lease.epoch]
        if not args:
            return 0
        with translate_errors(self.where):
            return int(self.scripts.release(args=args))

    def expire_leases(self, *, patience_s: float = 10) -> int:
        """Return jobs whose lease ran out, each charged an attempt; -1 when another worker does it now.

        After ``patience_s`` without any sweep, Redis or every worker was away and no lease could be renewed: as long
        again nothing is judged.
        """
        with translate_errors(self.where):
            return int(self.scripts.expire_leases(args=[_SWEEP_LIMIT, _SWEEP_LOCK_MS, int(patience_s * 1000)]))

    def cancellations(self) -> Cancellations:
        """Listen for batches that are cancelled from now on."""
        return Cancellations(self.redis, self.where)

    # -- workers ---------------------------------------------------------------------------------------------

    def heartbeat(
        self,
        model: str,
        worker: str,
        measured: Mapping[str, float] | None = None,
        *,
        about: Mapping[str, str | int] | None = None,
    ) -> int:
        """Say that the worker lives, and what it measured since it last did; return how many jobs of its model wait.

        ``measured`` has the fields of ``Speed``, and ``wall_s``: the seconds it took. ``about`` has the device,
        device_name, dtype and slots of ``WorkerRecord``.
        """
        facts = dict(about or {})
        args: list[Any] = [model, worker, _WORKER_FORGOTTEN_S, len(facts)]
        for name, fact in facts.items():
            args += [name, fact]
        for name, value in (measured or {}).items():
            args += [name, repr(float(value))]
        with translate_errors(self.where):
            return int(self.scripts.heartbeat(args=args))

    def throughput(self, model: str) -> Throughput | None:
        """Return what the workers of a model have measured, None where none has rendered anything."""
        with translate_errors(self.where):
            figures = {decode(key): float(value) for key, value in self.redis.hgetall(f"lf:throughput:{model}").items()}
        # steps are told of before the first picture is
        return (
            Throughput(**{each.name: figures.get(each.name, 0.0) for each in fields(Throughput)}) if figures else None
        )

    def count_pending(self, model: str) -> int:
        """Return how many jobs of a model wait to be leased."""
        with translate_errors(self.where):
            return int(self.scripts.count_pending(args=[model]))

    def sign_off(self, model: str, worker: str) -> None:
        """Say that the worker is gone."""
        with translate_errors(self.where):
            self.redis.zrem(f"lf:workers:{model}", worker)
            self.redis.delete(f"lf:worker:{worker}")

    def workers(self, model: str) -> list[str]:
        """Return the workers of a model that were seen in the last 15 seconds."""
        with translate_errors(self.where):
            since = self.now_us() // 1000 - _WORKER_ALIVE_MS
            return [decode(worker) for worker in self.redis.zrangebyscore(f"lf:workers:{model}", since, "+inf")]

    def worker_records(self, model: str | None = None) -> list[WorkerRecord]:
        """Return what is known of the workers that were seen in the last 15 seconds, of one model or of all."""
        with translate_errors(self.where):
            since = self.now_us() // 1000 - _WORKER_ALIVE_MS
            models = [model] if model is not None else sorted(map(decode, self.redis.zrange("lf:models", 0, -1)))
            return [each for name in models for each in read_workers(self.redis, name, seen_since_ms=since)]

    # -- questions -------------------------------------------------------------------------------------------

    def ping(self) -> str:
        """Return the server's version."""
        with translate_errors(self.where):
            return str(self.redis.info("server")["redis_version"])

    def now_us(self) -> int:
        """Return Redis ``TIME`` in microseconds: every epoch so far is lower."""
        with translate_errors(self.where):
            seconds, micros = self.redis.time()
        return int(seconds) * 1_000_000 + int(micros)

    def batches(self) -> list[str]:
        """Return every batch's name, oldest first."""
        with translate_errors(self.where):
            return [decode(name) for name in self.redis.zrange("lf:batches", 0, -1)]

    def batch_summaries(self) -> list[BatchSummary]:
        """Return every batch in few words, oldest first."""
        with translate_errors(self.where):
            return read_batch_summaries(self.redis)

    def memory_bytes(self) -> int:
        """Return the memory that Redis says it uses."""
        with translate_errors(self.where):
            return int(self.redis.info("memory")["used_memory"])

    def batch(self, name: str) -> BatchRecord:
        """Return a batch's record.

        Raises:
            InputError: there is no such batch.
        """
        with translate_errors(self.where):
            pipe = self.redis.pipeline(transaction=True)
            pipe.hgetall(f"lf:batch:{name}")
            pipe.hgetall(f"lf:reasons:{name}")
            found, counted = pipe.execute()
            facts = {decode(key): decode(value) for key, value in found.items()}
            if not facts:
                raise _unknown(name)
            rate = self._images_per_s(name, facts)
        errors = {decode(code): int(count) for code, count in counted.items()}
        return batch_record(name, facts, errors, rate)

    def states(self, batch: str, start: int, stop: int) -> list[JobState]:
        """Return the states of the jobs ``start`` to ``stop - 1``."""
        with translate_errors(self.where):
            untouched = _untouched(self.redis.hget(f"lf:batch:{batch}", "state"))
        return [JobState(byte) or untouched for byte in self._state_bytes(batch, start, stop)]

    def indices(self, batch: str, state: JobState) -> Iterator[int]:
        """Yield the indices of the jobs in a state that leaves its byte: any but pending and cancelled."""
        total, wanted = self.batch(batch).total, bytes([state])
        for start in range(0, total, CHUNK_JOBS):
            chunk = self._state_bytes(batch, start, min(start + CHUNK_JOBS, total))
            at = chunk.find(wanted)
            while at >= 0:
                yield start + at
                at = chunk.find(wanted, at + 1)

    def _state_bytes(self, batch: str, start: int, stop: int) -> bytes:
        found = bytearray()
        with translate_errors(self.where):
            while start < stop:
                chunk, at = divmod(start, CHUNK_JOBS)
                end = min(stop - chunk * CHUNK_JOBS, CHUNK_JOBS)
                piece = cast("bytes", self.redis.getrange(f"lf:states:{batch}:{chunk}", at, end - 1))
                found += piece.ljust(end - at, b"\0")
                start = chunk * CHUNK_JOBS + end
        return bytes(found)

    def jobs(self, batch: str, indices: Sequence[int]) -> list[JobRecord]:
        """Return the records of jobs of one chunk, in the order given; the receipts only while they are here."""
        if not indices:
            return []
        names = [str(index) for index in indices]
        chunk, first = divmod(min(indices), CHUNK_JOBS)
        last = max(indices) - chunk * CHUNK_JOBS
        with translate_errors(self.where):
            pipe = self.redis.pipeline(transaction=True)
            pipe.hget(f"lf:batch:{batch}", "state")
            pipe.getrange(f"lf:states:{batch}:{chunk}", first, last)
            pipe.hmget(f"lf:attempts:{batch}", names)
            pipe.hmget(f"lf:errors:{batch}", names)
            pipe.hmget(f"lf:results:{batch}", names)
            pipe.hmget("lf:holders", [f"{batch}/{name}" for name in names])
            state, found, *facts = pipe.execute()
        untouched = _untouched(state)
        states = found.ljust(last - first + 1, b"\0")
        return [
            job_record(batch, index, JobState(states[index - chunk * CHUNK_JOBS - first]) or untouched, *each)
            for index, *each in zip(indices, *facts, strict=True)
        ]

    def _images_per_s(self, batch: str, facts: Mapping[str, str]) -> float | None:
        """Return the rate of the last two minutes, or of the whole run once it is over."""
        done, first_ms, last_ms = (int(facts.get(name, 0)) for name in ("done", "first_ms", "last_ms"))
        if not done or not first_ms:
            # nothing was rendered, or all of it before a recovery
            return None
        if facts["state"] in FINAL:
            return done / max(last_ms - first_ms, 1) * 1000
        now = self.now_us() // 1000
        slot = now // _PACE_SLOT_MS
        counts = self.redis.mget([f"lf:rate:{batch}:{slot - back}" for back in range(_PACE_SLOTS)])
        span_ms = min(now - first_ms, (_PACE_SLOTS - 1) * _PACE_SLOT_MS + now % _PACE_SLOT_MS)
        return sum(int(count or 0) for count in counts) / max(span_ms, 1) * 1000


def _untouched(batch_state: bytes | str | None) -> JobState:
    """Return what a byte of state that was never written means."""
    return JobState.CANCELLED if batch_state == BatchState.CANCELLED.encode() else JobState.PENDING


def _unknown(batch: str) -> InputError:
    return InputError(f"batch {batch!r} is not known; `latentfarm list` shows them all")


def _without_password(url: str) -> str:
    # before the host, or in the query
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"

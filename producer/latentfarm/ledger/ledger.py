"""The ledger as Python sees it: one method a script, and the read-only questions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import redis

from latentfarm.errors import InputError, UnavailableError
from latentfarm.job import JobState
from latentfarm.ledger.scripts import Scripts

CHUNK_JOBS = 1_000_000
#: a job that lost its worker this often has failed
MAX_ATTEMPTS = 3
_SWEEP_LIMIT = 1_000
_SWEEP_LOCK_MS = 2_000
_WORKER_FORGOTTEN_MS = 60_000
_WORKER_ALIVE_MS = 15_000
_PACE_SLOT_MS, _PACE_SLOTS = 10_000, 12

CommitOutcome = Literal["done", "full", "again", "stale"]
FailOutcome = Literal["failed", "full", "retry", "stale"]


@dataclass(frozen=True)
class Lease:
    """A worker's right to render one job. ``epoch`` rises with every lease of the batch."""

    batch: str
    index: int
    epoch: int
    attempts: int

    @property
    def name(self) -> str:
        """The job's id, ``<batch>/<index>``."""
        return f"{self.batch}/{self.index}"


@dataclass(frozen=True)
class BatchRecord:
    """What the ledger knows of a batch. Times are milliseconds of Redis ``TIME``, 0 where not reached."""

    name: str
    model: str
    digest: str
    state: str
    total: int
    leased: int
    done: int
    failed: int
    cancelled: int
    priority: int
    first_ms: int = 0
    last_ms: int = 0
    images_per_s: float | None = field(default=None)

    @property
    def pending(self) -> int:
        """Jobs that wait for a lease."""
        return self.total - self.leased - self.done - self.failed - self.cancelled

    @property
    def complete(self) -> bool:
        """Whether every job has ended."""
        return self.state == "complete"


@dataclass(frozen=True)
class JobRecord:
    """What the ledger knows of a job; ``receipt`` is None once its part was flushed to the bucket."""

    batch: str
    index: int
    state: JobState
    attempts: int
    worker: str | None
    error: dict[str, str] | None
    receipt: dict[str, Any] | None


@contextmanager
def _reachable(where: str) -> Iterator[None]:
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.AuthenticationError) as error:
        raise UnavailableError(f"Redis at {where} cannot be used: {error}") from error


class Ledger:
    """The record of every job, over one Redis client.

    Every method raises ``UnavailableError`` when Redis does not answer.
    """

    def __init__(self, client: redis.Redis, *, where: str) -> None:
        self.redis = client
        self.where = where
        self._scripts = Scripts(client)

    @classmethod
    def connect(cls, url: str) -> Ledger:
        """Return a ledger on ``redis://``, ``rediss://`` or ``unix://``; nothing is sent yet."""
        client = redis.Redis.from_url(
            url, socket_timeout=10, socket_connect_timeout=5, health_check_interval=10, decode_responses=False
        )
        return cls(client, where=_without_password(url))

    # -- a batch's life --------------------------------------------------------------------------------------

    def reserve(
        self, batch: str, *, digest: str, model: str, total: int, priority: int = 0, weight: int = 1
    ) -> Literal["new", "same"]:
        """Take the batch's name; ``same`` when this very batch was reserved before.

        Raises:
            InputError: the name belongs to another batch.
        """
        with _reachable(self.where):
            answer = _text(self._scripts.reserve(args=[batch, digest, model, total, priority, weight]))
        if answer not in {"new", "same"}:
            raise InputError(
                f"batch {batch!r} exists with other content (its digest is {answer[:12]}, yours {digest[:12]}); "
                "choose another --batch name"
            )
        return cast("Literal['new', 'same']", answer)

    def open(self, batch: str) -> str:
        """Let workers lease the jobs of a reserved batch; return the batch's state."""
        with _reachable(self.where):
            state = _text(self._scripts.open(args=[batch]))
        if not state:
            raise InputError(f"batch {batch!r} is not known")
        return state

    # -- a job's life ----------------------------------------------------------------------------------------

    def lease(self, model: str, worker: str, k: int, *, lease_s: float) -> list[Lease]:
        """Lease up to ``k`` jobs of the model."""
        with _reachable(self.where):
            found = self._scripts.lease(args=[model, worker, k, int(lease_s * 1000)])
        return [Lease(_text(batch), index, epoch, attempts) for batch, index, epoch, attempts in found]

    def renew(self, leases: Iterable[Lease], *, lease_s: float) -> set[str]:
        """Hold the leases for another ``lease_s``; return the names of those that are lost."""
        args: list[Any] = [int(lease_s * 1000)]
        for lease in leases:
            args += [lease.name, lease.epoch]
        with _reachable(self.where):
            return {_text(name) for name in self._scripts.renew(args=args)}

    def commit(self, lease: Lease, receipt: dict[str, Any]) -> CommitOutcome:
        """Record that the job's image lies in the bucket; ``stale`` when the lease went to somebody else."""
        document = json.dumps({**receipt, "epoch": lease.epoch}, ensure_ascii=False)
        with _reachable(self.where):
            return cast("CommitOutcome", _text(self._scripts.commit(args=[lease.name, lease.epoch, document])))

    def fail(self, lease: Lease, error: dict[str, str], *, retry: bool = False, delay_s: float = 0) -> FailOutcome:
        """Charge the job an attempt for its own fault: it failed, or runs again after ``delay_s`` if ``retry``."""
        args = [lease.name, lease.epoch, json.dumps(error), int(retry), MAX_ATTEMPTS, int(delay_s * 1000)]
        with _reachable(self.where):
            return cast("FailOutcome", _text(self._scripts.fail(args=args)))

    def release(self, leases: Iterable[Lease]) -> int:
        """Give jobs back uncharged; return how many were still held."""
        args: list[Any] = []
        for lease in leases:
            args += [lease.name, lease.epoch]
        if not args:
            return 0
        with _reachable(self.where):
            return int(self._scripts.release(args=args))

    def sweep(self) -> int:
        """Return jobs whose lease ran out, each charged an attempt; -1 when another worker does it now."""
        with _reachable(self.where):
            return int(self._scripts.sweep(args=[MAX_ATTEMPTS, _SWEEP_LIMIT, _SWEEP_LOCK_MS]))

    # -- workers ---------------------------------------------------------------------------------------------

    def beat(self, model: str, worker: str) -> int:
        """Say that the worker lives; return how many jobs of its model wait."""
        with _reachable(self.where):
            return int(self._scripts.beat(args=[model, worker, _WORKER_FORGOTTEN_MS]))

    def waiting(self, model: str) -> int:
        """Return how many jobs of a model wait to be leased."""
        with _reachable(self.where):
            return int(self._scripts.waiting(args=[model]))

    def leave(self, model: str, worker: str) -> None:
        """Say that the worker is gone."""
        with _reachable(self.where):
            self.redis.zrem(f"lf:workers:{model}", worker)

    def workers(self, model: str) -> list[str]:
        """Return the workers of a model that were seen in the last 15 seconds."""
        with _reachable(self.where):
            since = self._now_ms() - _WORKER_ALIVE_MS
            return [_text(worker) for worker in self.redis.zrangebyscore(f"lf:workers:{model}", since, "+inf")]

    # -- results on their way to the bucket ------------------------------------------------------------------

    def full_parts(self) -> list[tuple[str, int]]:
        """Return (batch, part) whose jobs have all ended and whose receipts wait for the bucket."""
        with _reachable(self.where):
            names = sorted(_text(name) for name in self.redis.smembers("lf:flush"))
        return [(name.rpartition("/")[0], int(name.rpartition("/")[2])) for name in names]

    def trim(self, batch: str, part: int) -> None:
        """Forget the receipts of a part that lies in the bucket."""
        with _reachable(self.where):
            self._scripts.trim(args=[batch, part])

    # -- questions -------------------------------------------------------------------------------------------

    def ping(self) -> str:
        """Return the server's version."""
        with _reachable(self.where):
            return str(self.redis.info("server")["redis_version"])

    def batches(self) -> list[str]:
        """Return every batch's name, oldest first."""
        with _reachable(self.where):
            return [_text(name) for name in self.redis.zrange("lf:batches", 0, -1)]

    def batch(self, name: str) -> BatchRecord:
        """Return a batch's record.

        Raises:
            InputError: there is no such batch.
        """
        with _reachable(self.where):
            facts = {_text(key): _text(value) for key, value in self.redis.hgetall(f"lf:batch:{name}").items()}
            if not facts:
                raise InputError(f"batch {name!r} is not known; `latentfarm status` lists the batches")
            first_ms, last_ms = int(facts.get("first_ms", 0)), int(facts.get("last_ms", 0))
            rate = self._images_per_s(name, facts["state"], int(facts["done"]), first_ms, last_ms)
        return BatchRecord(
            name=name,
            model=facts["model"],
            digest=facts["digest"],
            state=facts["state"],
            total=int(facts["total"]),
            leased=int(facts["leased"]),
            done=int(facts["done"]),
            failed=int(facts["failed"]),
            cancelled=int(facts["cancelled"]),
            priority=int(facts["priority"]),
            first_ms=first_ms,
            last_ms=last_ms,
            images_per_s=rate,
        )

    def states(self, batch: str, start: int, stop: int) -> list[JobState]:
        """Return the states of the jobs ``start`` to ``stop - 1``."""
        found = bytearray()
        with _reachable(self.where):
            while start < stop:
                chunk, at = divmod(start, CHUNK_JOBS)
                end = min(stop - chunk * CHUNK_JOBS, CHUNK_JOBS)
                piece = cast("bytes", self.redis.getrange(f"lf:states:{batch}:{chunk}", at, end - 1))
                found += piece.ljust(end - at, b"\0")
                start = chunk * CHUNK_JOBS + end
        return [JobState(byte) for byte in found]

    def jobs(self, batch: str, indices: Sequence[int]) -> list[JobRecord]:
        """Return the records of the jobs with these indices, in order; the receipts only while they are here."""
        if not indices:
            return []
        names = [str(index) for index in indices]
        with _reachable(self.where):
            pipe = self.redis.pipeline(transaction=True)
            for index in indices:
                pipe.getrange(f"lf:states:{batch}:{index // CHUNK_JOBS}", index % CHUNK_JOBS, index % CHUNK_JOBS)
            pipe.hmget(f"lf:attempts:{batch}", names)
            pipe.hmget(f"lf:errors:{batch}", names)
            pipe.hmget(f"lf:results:{batch}", names)
            pipe.hmget("lf:holders", [f"{batch}/{name}" for name in names])
            *states, attempts, errors, receipts, holders = pipe.execute()
        return [
            _job_record(batch, index, *facts)
            for index, *facts in zip(indices, states, attempts, errors, receipts, holders, strict=True)
        ]

    def _now_ms(self) -> int:
        seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def _images_per_s(self, batch: str, state: str, done: int, first_ms: int, last_ms: int) -> float | None:
        """Return the rate of the last two minutes, or of the whole run once it is complete."""
        if not done:
            return None
        if state == "complete":
            return done / max(last_ms - first_ms, 1) * 1000
        now = self._now_ms()
        slot = now // _PACE_SLOT_MS
        counts = self.redis.mget([f"lf:pace:{batch}:{slot - back}" for back in range(_PACE_SLOTS)])
        span_ms = min(now - first_ms, (_PACE_SLOTS - 1) * _PACE_SLOT_MS + now % _PACE_SLOT_MS)
        return sum(int(count or 0) for count in counts) / max(span_ms, 1) * 1000


def _job_record(
    batch: str,
    index: int,
    state: bytes,
    attempts: bytes | None,
    error: bytes | None,
    receipt: bytes | None,
    holder: bytes | None,
) -> JobRecord:
    found = JobState(state[0]) if state else JobState.PENDING
    # charged attempts are those that went wrong; the one that runs or ended well comes on top
    running = found in {JobState.LEASED, JobState.DONE}
    return JobRecord(
        batch=batch,
        index=index,
        state=found,
        attempts=int(attempts or 0) + int(running),
        worker=_text(holder).partition(" ")[2] if holder else None,
        error=json.loads(error) if error and found is not JobState.DONE else None,
        receipt=json.loads(receipt) if receipt else None,
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"

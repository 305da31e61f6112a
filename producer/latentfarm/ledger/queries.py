"""Reads batches and jobs from the ledger; changes nothing.

Only plain commands read here, no script and no transaction: Redis at its memory limit refuses every transaction, and a
user who may only read may run neither. So the replies of one method may be of different moments, and the order of its
commands matters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, cast

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import FINAL, BatchState
from latentfarm.errors import NotFoundError
from latentfarm.job_state import JobState
from latentfarm.ledger.client import LedgerClient
from latentfarm.ledger.constants import CHUNK_JOBS, RATE_SLOT_MS, RATE_SLOTS, SCHEMA_KEY
from latentfarm.ledger.records import (
    SUMMARY_FIELDS,
    BatchRecord,
    BatchSummary,
    JobRecord,
    Snapshot,
    batch_record,
    batch_summary,
    decode,
    job_record,
    split_account,
)
from latentfarm.ledger.redis_errors import translate_errors
from latentfarm.limits import PART_JOBS

#: the sets of all batches but interactive ones, and of those
_LISTS = ("{lf}:batches", "{lf}:interactive")
#: batches in one reply, and jobs whose states are in one: a page of a list needs few
_PAGE_BATCHES, _WINDOW_JOBS = 100, 65_536
#: counters alone do not do: if one job is released and another one leased, they are as before, but for the epoch
_VERSION_FIELDS = [
    *("total", "epoch", "leased", "done", "failed", "cancelled", "drafted", "retries", "state", "created_ms"),
]
#: state, retries and generation of a batch, as Redis has them
_Facts = tuple[bytes | None, bytes | None, bytes | None]


class Queries(LedgerClient):
    """The read-only part of the ledger."""

    def batches(self, *, interactive: bool = False) -> list[str]:
        """Return the name of every batch, oldest first; without the interactive ones by default."""
        with translate_errors(self.where):
            pipe = self.redis.pipeline(transaction=False)
            for key in _LISTS[: 1 + interactive]:
                pipe.zrange(key, 0, -1, withscores=True)
            pipe.get(SCHEMA_KEY)
            *found, schema = pipe.execute()
        self.check_schema(schema)
        # as Redis sorts: by time, then by name
        return [decode(name) for name, _ in sorted(chain(*found), key=lambda entry: entry[::-1])]

    def count_interactive(self) -> int:
        """Return the number of interactive batches."""
        with translate_errors(self.where):
            return int(self.redis.zcard(_LISTS[1]))

    def newest_batches(
        self, *, interactive: bool = False, before: tuple[int, str] | None = None
    ) -> Iterator[tuple[int, str]]:
        """Yield the creation time, in milliseconds, and the name of each batch, newest first.

        Args:
            interactive: only interactive batches instead of only others.
            before: the batch, as it was yielded, after which to begin; it may be deleted since.
        """
        key = _LISTS[interactive]
        while True:
            with translate_errors(self.where):
                found = self._batches_before(key, before)
            for name, created in found:
                before = int(created), decode(name)
                yield before
            if len(found) < _PAGE_BATCHES:
                return

    def _batches_before(self, key: str, before: tuple[int, str] | None) -> list[tuple[bytes, float]]:
        rank: Any = -1 if before is None else self.redis.zrevrank(key, before[1])
        found: Any
        if before is not None and rank is None:
            found = self.redis.zrevrangebyscore(
                key, f"({before[0]}", "-inf", start=0, num=_PAGE_BATCHES, withscores=True
            )
        else:
            found = self.redis.zrevrange(key, rank + 1, rank + _PAGE_BATCHES, withscores=True)
        return list(found)

    def batch_summaries(self, names: Sequence[str] | None = None) -> list[BatchSummary]:
        """Return the summaries of those of these batches that exist, in the order of their names, in one round trip.

        Without names, return those of ``batches()``.
        """
        names = self.batches() if names is None else names
        with translate_errors(self.where):
            pipe = self.redis.pipeline(transaction=False)
            for name in names:
                pipe.hmget(f"{{lf}}:batch:{name}", SUMMARY_FIELDS)
            pipe.get(SCHEMA_KEY)
            *found, schema = pipe.execute()
        self.check_schema(schema)
        return [batch_summary(name, facts) for name, facts in zip(names, found, strict=True) if facts[0] is not None]

    def unfinished_by_owner(self) -> dict[tuple[BatchKind, str], int]:
        """Return how many jobs of active batches have not ended, by kind and owner of the batch, where any.

        Batches of kind submitted without an owner are not counted.
        """
        with translate_errors(self.where):
            found = self.redis.hgetall("{lf}:unfinished_by_owner")
        return {split_account(account): int(count) for account, count in found.items()}

    def batch(self, name: str) -> BatchRecord:
        """Return a batch's record.

        Raises:
            NotFoundError: the batch is unknown.
        """
        with translate_errors(self.where):
            pipe = self.redis.pipeline(transaction=False)
            pipe.hgetall(f"{{lf}}:batch:{name}")
            # later than the number of failed jobs, so that each of them has a code
            pipe.hgetall(f"{{lf}}:error_counts:{name}")
            pipe.get(SCHEMA_KEY)
            found, counted, schema = pipe.execute()
            facts = {decode(key): decode(value) for key, value in found.items()}
            self.check_schema(schema)
            if not facts:
                raise unknown_batch(name)
            rate = self._images_per_s(name, facts)
        errors = {decode(code): int(count) for code, count in counted.items()}
        return batch_record(name, facts, errors, rate)

    def require_batch(self, name: str) -> None:
        """Check that a batch exists; cheaper than ``batch``.

        Raises:
            NotFoundError: the batch is unknown.
        """
        if not self.batch_summaries([name]):
            raise unknown_batch(name)

    def states_version(self, batch: str) -> tuple[int, tuple[bytes, ...]]:
        """Return the number of a batch's jobs, and a version that is another one after each change of a job's state.

        Raises:
            NotFoundError: the batch is unknown.
        """
        with translate_errors(self.where):
            version: Any = self.redis.hmget(f"{{lf}}:batch:{batch}", _VERSION_FIELDS)
        if version[0] is None:
            raise unknown_batch(batch)
        return int(version[0]), tuple(version)

    def states(self, batch: str, start: int, stop: int) -> list[JobState]:
        """Return the states of the jobs ``start`` to ``stop - 1``."""
        return [JobState(byte) for byte in self.state_bytes(batch, start, stop)]

    def state_bytes(self, batch: str, start: int, stop: int) -> bytes:
        """Return the states of the jobs ``start`` to ``stop - 1``, a byte each."""
        with translate_errors(self.where):
            untouched = _untouched(self.redis.hget(f"{{lf}}:batch:{batch}", "state"))
        found = self._state_bytes(batch, start, stop)
        return found.replace(b"\0", bytes([untouched])) if untouched else found

    def find_states(self, batch: str, states: Collection[JobState], start: int, stop: int) -> Iterator[int]:
        """Yield the indices from ``start`` to ``stop - 1`` of the jobs in one of these states, in order."""
        marks = bytes(byte in states for byte in range(256))
        for first in range(start, stop, _WINDOW_JOBS):
            found = self.state_bytes(batch, first, min(first + _WINDOW_JOBS, stop)).translate(marks)
            at = found.find(1)
            while at >= 0:
                yield first + at
                at = found.find(1, at + 1)

    def indices(self, batch: str, state: JobState) -> Iterator[int]:
        """Yield the indices of all jobs in a state, in order."""
        yield from self.find_states(batch, {state}, 0, self.batch(batch).total)

    def jobs(self, batch: str, indices: Sequence[int]) -> list[JobRecord]:
        """Return the records of jobs of one chunk, in the order given."""
        return self.snapshot(batch, indices).jobs if indices else []

    def snapshot(self, batch: str, indices: Sequence[int]) -> Snapshot:
        """Return the records of jobs of one part, with those facts of their batch that result lines depend on.

        The state of a job and the facts are read before and after the rest of its record. While one of them changes,
        they are read again, so every record is of one moment, and all are of one generation.
        """
        while True:
            facts, records = self._read_jobs(batch, indices)
            again = [index for index in indices if index not in records]
            stable = facts is not None
            while stable and again:
                more_facts, more = self._read_jobs(batch, again)
                records |= more
                stable, again = more_facts == facts, [index for index in again if index not in more]
            if facts is not None and stable:
                state, retries, generation = facts
                known = BatchState(decode(state)) if state else None
                jobs = [records[index] for index in indices]
                return Snapshot(known, retries=int(retries or 0), generation=int(generation or 0), jobs=jobs)

    def _read_jobs(self, batch: str, indices: Sequence[int]) -> tuple[_Facts | None, dict[int, JobRecord]]:
        """Return the facts and the records by index; without those that changed meanwhile."""
        names = [str(index) for index in indices]
        chunk, first = divmod(min(indices), CHUNK_JOBS)
        last = max(indices) - chunk * CHUNK_JOBS
        with translate_errors(self.where):
            pipe = self.redis.pipeline(transaction=False)
            self._read_facts(pipe, batch, min(indices) // PART_JOBS)
            pipe.getrange(f"{{lf}}:states:{batch}:{chunk}", first, last)
            # a flush removes all three: where there is a receipt or an error, the attempts were still there
            pipe.hmget(f"{{lf}}:attempts:{batch}", names)
            pipe.hmget(f"{{lf}}:errors:{batch}", names)
            pipe.hmget(f"{{lf}}:receipts:{batch}", names)
            pipe.hmget("{lf}:holders", [f"{batch}/{name}" for name in names])
            pipe.getrange(f"{{lf}}:states:{batch}:{chunk}", first, last)
            self._read_facts(pipe, batch, min(indices) // PART_JOBS)
            found: list[Any] = pipe.execute()
        (state, retries), generation, before, *fields, after, facts_after, generation_after = found
        untouched = _untouched(state)
        before, after = (states.ljust(last - first + 1, b"\0") for states in (before, after))
        records = {}
        for index, *each in zip(indices, *fields, strict=True):
            at = index - chunk * CHUNK_JOBS - first
            if before[at] == after[at]:
                records[index] = job_record(batch, index, JobState(before[at]) or untouched, *each)
        changed = [state, retries] != facts_after or generation != generation_after
        return (None if changed else (state, retries, generation)), records

    @staticmethod
    def _read_facts(pipe: Any, batch: str, part: int) -> None:
        pipe.hmget(f"{{lf}}:batch:{batch}", ["state", "retries"])
        pipe.hget(f"{{lf}}:flushed:{batch}", str(part))

    def _state_bytes(self, batch: str, start: int, stop: int) -> bytes:
        found = bytearray()
        with translate_errors(self.where):
            while start < stop:
                chunk, at = divmod(start, CHUNK_JOBS)
                end = min(stop - chunk * CHUNK_JOBS, CHUNK_JOBS)
                piece = cast("bytes", self.redis.getrange(f"{{lf}}:states:{batch}:{chunk}", at, end - 1))
                found += piece.ljust(end - at, b"\0")
                start = chunk * CHUNK_JOBS + end
        return bytes(found)

    def _images_per_s(self, batch: str, facts: Mapping[str, str]) -> float | None:
        """Return the rate of images and drafts of the last two minutes; of a batch that has ended, of its whole run."""
        done, drafted, first_ms, last_ms = (
            int(facts.get(name, 0)) for name in ("done", "drafted", "first_ms", "last_ms")
        )
        if not done + drafted or not first_ms:
            # nothing was rendered, or all of it before a recovery
            return None
        if facts["state"] in FINAL:
            return done / max(last_ms - first_ms, 1) * 1000
        now = self.now_us() // 1000
        slot = now // RATE_SLOT_MS
        counts = self.redis.mget([f"{{lf}}:rate:{batch}:{slot - back}" for back in range(RATE_SLOTS)])
        span_ms = min(now - first_ms, (RATE_SLOTS - 1) * RATE_SLOT_MS + now % RATE_SLOT_MS)
        return sum(int(count or 0) for count in counts) / max(span_ms, 1) * 1000


def known_state(batch: str, state: str) -> BatchState:
    """Return the state in the reply of a script.

    Raises:
        NotFoundError: it is empty, as the batch is unknown.
    """
    if not state:
        raise unknown_batch(batch)
    return BatchState(state)


def unknown_batch(batch: str) -> NotFoundError:
    """Return the error for a batch that the ledger does not have."""
    return NotFoundError(f"batch {batch!r} is unknown; `latentfarm status` lists all batches")


def _untouched(batch_state: bytes | str | None) -> JobState:
    """Return the state of a job whose byte was never written."""
    cancelled = batch_state is not None and decode(batch_state) == BatchState.CANCELLED
    return JobState.CANCELLED if cancelled else JobState.PENDING

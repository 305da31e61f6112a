"""A submitted batch, as its user holds it: how far it is, its jobs, its results, its pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from latentfarm import results
from latentfarm.bucket import image_key
from latentfarm.errors import InputError
from latentfarm.fetch import Fetched, fetch_batch
from latentfarm.job import PART_JOBS, JobState
from latentfarm.manifest import ManifestReader

if TYPE_CHECKING:
    from latentfarm.farm import Farm

#: seconds between two looks at a batch that is waited for
_POLL_S = 0.25


class BatchStatus(BaseModel):
    """How far a batch is. ``images_per_s`` is that of the last two minutes, or of the whole run once complete."""

    model_config = ConfigDict(frozen=True)

    batch: str
    model: str
    state: str
    total: int
    pending: int
    leased: int
    done: int
    failed: int
    cancelled: int
    images_per_s: float | None
    eta_s: float | None

    @property
    def ended(self) -> int:
        """Jobs on which nothing more happens by itself."""
        return self.done + self.failed + self.cancelled

    @property
    def complete(self) -> bool:
        """Whether every job has ended."""
        return self.state == "complete"


class JobStatus(BaseModel):
    """One job: its state, and what its receipt or its failure says."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    state: str
    attempts: int
    seed: int
    key: str
    sha256: str | None = None
    worker: str | None = None
    error: dict[str, str] | None = None
    timings: dict[str, float] | None = None


class Batch:
    """A submitted batch."""

    def __init__(self, farm: Farm, name: str) -> None:
        self.farm = farm
        self.name = name
        self._manifest = ManifestReader(farm.bucket)

    def __repr__(self) -> str:
        return f"Batch({self.name!r})"

    def status(self) -> BatchStatus:
        """Return how far the batch is, as the ledger says now."""
        record = self.farm.ledger.batch(self.name)
        left = record.pending + record.leased
        rate = record.images_per_s
        return BatchStatus(
            batch=record.name,
            model=record.model,
            state=record.state,
            total=record.total,
            pending=record.pending,
            leased=record.leased,
            done=record.done,
            failed=record.failed,
            cancelled=record.cancelled,
            images_per_s=rate,
            eta_s=left / rate if rate and left else (0.0 if not left else None),
        )

    def wait(
        self, *, timeout_s: float | None = None, progress: Callable[[BatchStatus], None] | None = None
    ) -> BatchStatus:
        """Return when every job has ended and every receipt lies in the bucket.

        Raises:
            TimeoutError: ``timeout_s`` passed before that.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            status = self.status()
            if progress is not None:
                progress(status)
            if status.complete:
                results.flush_full_parts(self.farm.ledger, self.farm.bucket, batch=self.name)
                return status
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(
                    f"batch {self.name} is not complete after {timeout_s:g} s: {status.ended} of {status.total}"
                )
            time.sleep(_POLL_S)

    def jobs(self, *, state: JobState | None = None) -> Iterator[JobStatus]:
        """Yield the jobs in order, or only those in one state."""
        total = self.farm.ledger.batch(self.name).total
        for start in range(0, total, PART_JOBS):
            stop = min(start + PART_JOBS, total)
            if state is not None and state not in self.farm.ledger.states(self.name, start, stop):
                continue
            for line in results.read_range(self.farm.ledger, self.farm.bucket, self.name, range(start, stop)):
                if state is None or line["state"] == state.word:
                    yield self._status_of(line)

    def job(self, index: int) -> JobStatus:
        """Return one job.

        Raises:
            InputError: the batch has no such index.
        """
        total = self.farm.ledger.batch(self.name).total
        if not 0 <= index < total:
            raise InputError(f"job {self.name}/{index}: the batch has the jobs 0 to {total - 1}")
        lines = results.read_range(self.farm.ledger, self.farm.bucket, self.name, range(index, index + 1))
        return self._status_of(next(lines))

    def results(self) -> Iterator[dict[str, Any]]:
        """Yield a line a job, in order: its request (diffusers' names, seed resolved) joined with its receipt."""
        total = self.farm.ledger.batch(self.name).total
        for line in results.read_results(self.farm.ledger, self.farm.bucket, self.name, total):
            job = self._manifest.job(self.name, line["index"])
            # the receipt knows what the worker filled in: the native size, the model's own scheduler
            yield {"id": job.id, **line, "request": {**job.request(), **line.get("request", {})}}

    def fetch(self, directory: str | Path, *, progress: Callable[[int, int], None] | None = None) -> Fetched:
        """Download the finished pictures and write ``results.jsonl``; what is there already is left alone."""
        return fetch_batch(self.farm.bucket, self.results(), Path(directory), progress=progress)

    def _status_of(self, line: dict[str, Any]) -> JobStatus:
        job = self._manifest.job(self.name, line["index"])
        fields = {**line, "id": line["job"], "seed": job.seed, "key": image_key(self.name, line["index"])}
        return JobStatus.model_validate(fields)

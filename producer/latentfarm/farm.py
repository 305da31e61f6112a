"""The Python API: a ``Farm`` takes batches, a ``Batch`` is asked how far it is and gives its pictures.

::

    farm = Farm.from_env()
    batch = farm.submit(["a red circle", "a blue star"], num_inference_steps=25)
    batch.wait()
    batch.fetch("out")
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from celery import Celery
from pydantic import BaseModel, ConfigDict

from latentfarm import doorbell, results
from latentfarm.bucket import Bucket, image_key
from latentfarm.errors import InputError
from latentfarm.fetch import Fetched, fetch_batch
from latentfarm.job import PART_JOBS, Defaults, Job, JobState, check_batch_name, check_model_alias, jobs_of
from latentfarm.ledger import Ledger
from latentfarm.manifest import Digest, Header, ManifestReader, read_header, write_manifest
from latentfarm.prompts import PlacedRow, Problem, check_all, check_defaults, read_file, read_rows
from latentfarm.settings import DEFAULT_MODEL, Settings

#: seconds between two looks at a batch that is waited for
_POLL_S = 0.25

Source = str | Path | Iterable[str | dict[str, Any]]


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


class Farm:
    """One Redis and one bucket. Methods raise ``UnavailableError`` when either does not answer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.require()
        self.ledger = Ledger.connect(settings.redis_url)
        self.bucket = Bucket.connect(settings)

    @classmethod
    def from_env(cls) -> Farm:
        """Return the farm that the environment names, else the one that ``latentfarm up`` runs in this folder."""
        return cls(Settings.load())

    @cached_property
    def _celery(self) -> Celery:
        return doorbell.make_app(self.settings.redis_url)

    def submit(
        self,
        source: Source,
        *,
        batch: str | None = None,
        model: str = DEFAULT_MODEL,
        priority: int = 0,
        progress: Callable[[int, int], None] | None = None,
        **defaults: Any,
    ) -> Batch:
        """Check every row, store the manifest, open the batch and ring the doorbell.

        Args:
            source: a prompt file's path, or prompts, or dictionaries in diffusers' parameter names.
            batch: the batch's name; by default made of the file's name and its content, so that submitting
                the same file with the same options again finds the batch instead of making another.
            model: the alias under which workers serve the model.
            priority: batches of a higher one are leased first.
            progress: called with (jobs stored, jobs in all).
            defaults: what a row leaves open, such as ``num_inference_steps=30``.

        Raises:
            InvalidRowsError: some rows are wrong; nothing was enqueued.
            InputError: an option is wrong, or the name belongs to another batch.
        """
        check_model_alias(model)
        filled = check_defaults(defaults)
        where, rows = _repeatable(source)
        check_all(rows(), where=where)
        name = check_batch_name(batch) if batch else _name_for(where, rows(), model, filled)
        digest = Digest(model)
        for job in _jobs(rows(), name, filled):
            digest.add(job)
        header = Header(batch=name, model=model, total=digest.total, digest=digest.hexdigest(), priority=priority)
        self._store(header, _jobs(rows(), name, filled), progress)
        self.ring(model)
        return Batch(self, name)

    def _store(self, header: Header, jobs: Iterator[Job], progress: Callable[[int, int], None] | None) -> None:
        asked = read_header(self.bucket, header.batch)
        if asked is not None and asked.digest != header.digest:
            raise InputError(
                f"batch {header.batch!r} lies in the bucket with other content (its digest is {asked.digest[:12]}, "
                f"yours {header.digest[:12]}); choose another --batch name"
            )
        self.ledger.reserve(
            header.batch,
            digest=header.digest,
            model=header.model,
            total=header.total,
            priority=header.priority,
        )
        if asked is None:
            for stored in write_manifest(self.bucket, header, jobs):
                if progress is not None:
                    progress(stored, header.total)
        # only now may a worker see the batch: its manifest is whole
        self.ledger.open(header.batch)

    def ring(self, model: str) -> int:
        """Wake workers of the model, as far as jobs wait; return how many doorbells were sent."""
        return doorbell.ring(self.ledger.redis, self._celery, model, self.ledger.waiting(model))

    def batches(self) -> list[Batch]:
        """Return every batch, oldest first."""
        return [Batch(self, name) for name in self.ledger.batches()]

    def batch(self, name: str) -> Batch:
        """Return one batch.

        Raises:
            InputError: it is not known.
        """
        self.ledger.batch(check_batch_name(name))
        return Batch(self, name)


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


def _repeatable(source: Source) -> tuple[str, Callable[[], Iterator[PlacedRow | Problem]]]:
    """Return the source's name and a function that reads it from its beginning."""
    if isinstance(source, str | Path):
        path = Path(source)
        return path.name, lambda: read_file(path)
    rows = list(source)
    return "rows", lambda: read_rows(rows)


def _jobs(rows: Iterable[PlacedRow | Problem], batch: str, defaults: Defaults) -> Iterator[Job]:
    index = 0
    for number, found in enumerate(rows):
        if isinstance(found, Problem):
            # the whole file was good a moment ago
            raise InputError(f"{found.text}\nthe file changed while it was read; submit it again")
        jobs = jobs_of(found.row.with_defaults(defaults), batch=batch, row_number=number, first_index=index)
        yield from jobs
        index += len(jobs)


def _name_for(where: str, rows: Iterable[PlacedRow | Problem], model: str, defaults: Defaults) -> str:
    content = hashlib.sha256(f"{model}\n{defaults.model_dump_json()}\n".encode())
    for found in rows:
        if isinstance(found, PlacedRow):
            content.update(found.row.model_dump_json().encode() + b"\n")
    slug = re.sub(r"[^a-z0-9]+", "-", Path(where).stem.lower()).strip("-")[:40].rstrip("-") or "batch"
    return f"{slug}-{content.hexdigest()[:8]}"

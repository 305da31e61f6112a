"""A submitted batch, as its user holds it: how far it is, its jobs, its results, its pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from latentfarm.batch_state import ACTIVE, FINAL, BatchState, PausedBy
from latentfarm.connection import Connection
from latentfarm.errors import InputError
from latentfarm.fetch import DEFAULT_TEMPLATE, FetchReport, Layout, fetch_batch
from latentfarm.job import PART_JOBS, JobState
from latentfarm.ledger import MAX_JOBS_PER_CALL
from latentfarm.storage import results
from latentfarm.storage.batch_control import BatchControl, write_control
from latentfarm.storage.bucket import MAX_PRESIGN_S
from latentfarm.storage.keys import batch_prefix, part_indices
from latentfarm.storage.manifest import INVALID_ROW, NOT_THE_REQUEST, ManifestReader

#: seconds between two looks at a batch that is waited for
_POLL_S = 0.25


class BatchStatus(BaseModel):
    """How far a batch is.

    ``state`` is opening (its manifest is still being stored, ``total`` grows), open, paused, complete or cancelled;
    ``paused`` the reason of a pause; ``errors`` the failed jobs by code; ``truncated`` counts the done ones whose
    prompt or negative prompt was too long for the model and lost its end; ``webhook`` is empty, due, sent or failed.
    ``images_per_s`` is that of the last two minutes, or of the whole run once it is over.
    """

    model_config = ConfigDict(frozen=True)

    batch: str
    model: str
    state: BatchState
    paused: str
    paused_by: PausedBy
    priority: int
    total: int
    pending: int
    leased: int
    done: int
    failed: int
    cancelled: int
    errors: dict[str, int]
    truncated: int
    webhook: str
    images_per_s: float | None
    eta_s: float | None

    @property
    def ended(self) -> int:
        """Jobs on which nothing more happens by itself."""
        return self.done + self.failed + self.cancelled

    @property
    def complete(self) -> bool:
        """Whether every job has ended."""
        return self.state is BatchState.COMPLETE

    @property
    def over(self) -> bool:
        """Whether nothing more happens: complete or cancelled."""
        return self.state in FINAL

    @property
    def stuck(self) -> bool:
        """Whether it is paused for a reason that lies in the batch, not by its user: somebody has to look."""
        return self.paused_by not in {PausedBy.NOT_PAUSED, PausedBy.USER}


class JobStatus(BaseModel):
    """One job: its state, and what its receipt or its failure says."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    state: str
    attempts: int
    seed: int | None
    key: str | None = None
    sha256: str | None = None
    worker: str | None = None
    error: dict[str, str] | None = None
    timings: dict[str, float] | None = None


class PresignedUrl(BaseModel):
    """Where anyone may read a job's picture until ``expires``."""

    model_config = ConfigDict(frozen=True)

    job: str
    url: str
    expires: datetime


class Batch:
    """A submitted batch."""

    def __init__(self, connection: Connection, name: str, *, rejected: Mapping[str, int] | None = None) -> None:
        self.connection = connection
        self.name = name
        #: of a batch that was just submitted: wrong rows by reason; they are failed jobs
        self.rejected = dict(rejected or {})
        self._manifest = ManifestReader(connection.bucket)

    def __repr__(self) -> str:
        return f"Batch({self.name!r})"

    def status(self) -> BatchStatus:
        """Return how far the batch is, as the ledger says now."""
        record = self.connection.ledger.batch(self.name)
        left = record.pending + record.leased
        rate = record.images_per_s
        return BatchStatus(
            batch=record.name,
            model=record.model,
            state=BatchState.PAUSED if record.paused_by else record.state,
            paused=record.paused,
            paused_by=record.paused_by,
            priority=record.priority,
            total=record.total,
            pending=record.pending,
            leased=record.leased,
            done=record.done,
            failed=record.failed,
            cancelled=record.cancelled,
            errors=record.errors,
            truncated=record.truncated,
            webhook=record.webhook,
            images_per_s=rate,
            eta_s=left / rate if rate and left else (0.0 if not left else None),
        )

    def wait(
        self, *, timeout_s: float | None = None, progress: Callable[[BatchStatus], None] | None = None
    ) -> BatchStatus:
        """Return when every job has ended and every receipt lies in the bucket, or the batch is cancelled or stuck.

        Raises:
            TimeoutError: ``timeout_s`` passed before that.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            status = self.status()
            if progress is not None:
                progress(status)
            if status.over:
                results.flush_full_parts(self.connection.ledger, self.connection.bucket, batch=self.name)
            if status.over or status.stuck:
                return status
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(
                    f"batch {self.name} is not complete after {timeout_s:g} s: {status.ended} of {status.total}"
                )
            time.sleep(_POLL_S)

    # -- control: all of it lasts, and doing it twice changes nothing ------------------------------------------

    def pause(self, reason: str = "") -> BatchStatus:
        """Start no more jobs until ``resume``; those that run now may end.

        Raises:
            InputError: the batch is over.
        """
        self._require_going(
            self.connection.ledger.pause(self.name, PausedBy.USER, reason)
        )
        self._keep_control()
        return self.status()

    def resume(self) -> BatchStatus:
        """Go on after a pause or a canary; the failure budget begins anew.

        Raises:
            InputError: the batch is over.
        """
        self._require_going(self.connection.ledger.resume(self.name))
        self._keep_control()
        status = self.status()
        self.connection.ring(status.model)
        return status

    def cancel(self) -> BatchStatus:
        """End the batch for good: running jobs stop at their next denoising step, finished pictures stay."""
        self.connection.ledger.cancel(self.name)
        self._keep_control()
        results.flush_full_parts(self.connection.ledger, self.connection.bucket, batch=self.name)
        return self.status()

    def retry(self, *, code: str | None = None) -> int:
        """Run failed jobs again, all or those of one error code; return how many.

        Jobs whose row was wrong stay failed: no worker could read them.

        Raises:
            InputError: the batch is cancelled, or ``code`` is that of wrong rows.
        """
        if code == INVALID_ROW:
            raise InputError(f"rows that were wrong cannot run; mend the file and submit it again (code {code})")
        retried, found = 0, self._failed_with_codes(code)
        while group := list(islice(found, MAX_JOBS_PER_CALL)):
            retried += self.connection.ledger.retry(self.name, group)
        if retried:
            self.connection.ring(self.connection.ledger.batch(self.name).model)
        return retried

    def _failed_with_codes(self, wanted: str | None) -> Iterator[tuple[int, str]]:
        failed = self.connection.ledger.indices(self.name, JobState.FAILED)
        for line in results.read_indices(self.connection.ledger, self.connection.bucket, self.name, failed):
            code = line.get("error", {}).get("code", "")
            if code != INVALID_ROW and wanted in {None, code}:
                yield line["index"], code

    def set_priority(self, priority: int) -> BatchStatus:
        """Let the batch run before all of a lower priority."""
        self.connection.ledger.set_priority(self.name, priority)
        self._keep_control()
        return self.status()

    def delete(self, *, progress: Callable[[int], None] | None = None) -> int:
        """Remove the batch from the ledger and all its objects from the bucket; return how many there were.

        Killed midway and run again, it goes on. What runs is cancelled first.
        """
        self.connection.ledger.mark_deleting(self.name)
        removed = 0
        for count in self.connection.bucket.delete_all(batch_prefix(self.name)):
            removed += count
            if progress is not None:
                progress(removed)
        self.connection.ledger.delete_batch(self.name)
        return removed

    def _keep_control(self) -> None:
        # the ledger acts on a decision at once; the bucket remembers it for a recovery
        write_control(self.connection.bucket, self.name, BatchControl.of(self.connection.ledger.batch(self.name)))

    def _require_going(self, state: str) -> None:
        if state not in ACTIVE:
            raise InputError(f"batch {self.name!r} is {state}; only one that is not over can be paused or resumed")

    # -- questions -------------------------------------------------------------------------------------------

    def jobs(self, *, state: JobState | None = None) -> Iterator[JobStatus]:
        """Yield the jobs in order, or only those in one state."""
        total = self.connection.ledger.batch(self.name).total
        for part in range(-(-total // PART_JOBS)):
            indices = part_indices(part, total)
            if state is not None and state not in self.connection.ledger.states(self.name, indices.start, indices.stop):
                continue
            for line in results.read_range(self.connection.ledger, self.connection.bucket, self.name, indices):
                if state is None or line["state"] == state.word:
                    yield self._status_of(line)

    def job(self, index: int) -> JobStatus:
        """Return one job.

        Raises:
            InputError: the batch has no such index.
        """
        total = self.connection.ledger.batch(self.name).total
        if not 0 <= index < total:
            raise InputError(f"job {self.name}/{index}: the batch has the jobs 0 to {total - 1}")
        lines = results.read_range(self.connection.ledger, self.connection.bucket, self.name, range(index, index + 1))
        return self._status_of(next(lines))

    def results(self) -> Iterator[dict[str, Any]]:
        """Yield a line a job, in order: its request (diffusers' names, seed resolved) joined with its receipt."""
        total = self.connection.ledger.batch(self.name).total
        for line in results.read_results(self.connection.ledger, self.connection.bucket, self.name, total):
            asked = self._manifest.line(self.name, line["index"])
            request = {name: value for name, value in asked.items() if name not in NOT_THE_REQUEST}
            # the receipt knows what the worker filled in: the native size, the model's own scheduler
            joined = {"id": asked.get("id"), "row": asked.get("row"), **line}
            joined["request"] = {**request, **line.get("request", {})}
            if "invalid" in asked:
                joined["error"] = asked["invalid"]
            yield {**joined, "columns": asked["columns"]} if "columns" in asked else joined

    def fetch(
        self,
        directory: str | Path,
        *,
        layout: Layout = "files",
        name_template: str = DEFAULT_TEMPLATE,
        only_new: bool = False,
        states: Collection[JobState] = (),
        progress: Callable[[FetchReport], None] = lambda _: None,
    ) -> FetchReport:
        """Download the finished pictures and write ``results.jsonl``; what is there already is left alone.

        Args:
            directory: made if it is not there.
            layout: ``files``, with a ``metadata.jsonl`` that Hugging Face's ImageFolder reads, or ``webdataset``: tar
                shards of a thousand jobs with an ``index.parquet``.
            name_template: how the files are called, such as ``{id}-{seed}``.
            only_new: pass over what an earlier fetch into the folder has fetched, even if the file is gone by now.
            states: only jobs in these; all if empty. Only done ones have pictures.
            progress: called after each job with the counts so far.

        Raises:
            InputError: names that are not safe or not unique, or a folder that cannot be written to.
        """
        return fetch_batch(
            self.connection.bucket,
            self.results,
            Path(directory),
            layout=layout,
            name_template=name_template,
            only_new=only_new,
            states={state.word for state in states},
            progress=progress,
        )

    def presigned(self, *, expires_s: int = 3600) -> Iterator[PresignedUrl]:
        """Yield a URL for each finished picture, in order; it needs no credentials until it expires.

        Args:
            expires_s: seconds from now, 1 to 604,800 (a week); less where the credentials themselves expire sooner.

        Raises:
            InputError: ``expires_s`` is out of range.
        """
        if not 1 <= expires_s <= MAX_PRESIGN_S:
            raise InputError(
                f"a URL that expires in {expires_s} s cannot be signed; write 1 to {MAX_PRESIGN_S} seconds"
            )
        for line in self.results():
            if line["state"] == JobState.DONE.word:
                expires = datetime.now(UTC) + timedelta(seconds=expires_s)
                url = self.connection.bucket.presign(line["key"], expires_s=expires_s)
                yield PresignedUrl(job=line["job"], url=url, expires=expires.replace(microsecond=0))

    def _status_of(self, line: dict[str, Any]) -> JobStatus:
        asked = self._manifest.line(self.name, line["index"])
        fields = {**line, "id": line["job"], "seed": asked.get("seed")}
        if "invalid" in asked:
            # in full; the ledger and the results tell only that the row was wrong
            fields["error"] = asked["invalid"]
        return JobStatus.model_validate(fields)

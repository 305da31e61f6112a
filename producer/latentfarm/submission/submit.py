"""Store a batch's manifest in parts. Workers may lease the jobs of a part as soon as it is stored.

Memory does not grow with the batch. A submission that was killed at any point continues when it is run again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import BatchState, PausedBy
from latentfarm.edit_fields import SOURCE_FIELDS, SOURCE_LIST_FIELDS
from latentfarm.errors import ConflictError, InputError
from latentfarm.ledger import Ledger, Reservation
from latentfarm.limits import PART_JOBS
from latentfarm.names import check_batch_name
from latentfarm.parallel import ordered_parallel_map
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.deletion import delete_batch
from latentfarm.storage.manifest import Header, Part, PartWriter, read_header, write_header
from latentfarm.submission.batch_facts import facts_of_header
from latentfarm.submission.prompts import RowError
from latentfarm.submission.request import Request, SubmitOptions
from latentfarm.submission.validation import ValidationReport, no_prompt_error

#: each thread has up to two parts in memory, about 250 kB each
_STORE_THREADS = 4
_INPUT_FIELDS = frozenset({*SOURCE_FIELDS, *SOURCE_LIST_FIELDS})


class Submission:
    """One run of a submission. ``report`` counts the rows read so far."""

    def __init__(
        self, ledger: Ledger, bucket: Bucket, request: Request, options: SubmitOptions, *, batch: str | None = None
    ) -> None:
        self.batch = request.name if batch is None else check_batch_name(batch)
        self.report = ValidationReport()
        self._ledger = ledger
        self._bucket = bucket
        self._request = request
        self._options = options
        self._header_before: Header | None = None
        self._stored = 0
        self._read_error: InputError | None = None
        self._has_inputs = False

    def run(self) -> Generator[int, None, None]:
        """Store the parts that are not stored yet. After each, yield the number of jobs that can be leased.

        Raises:
            InvalidRowsError: too many rows are invalid. Nothing is enqueued, or the batch is paused.
            ConflictError: the name belongs to another batch or to a cancelled one.
            InputError: the source cannot be read.
        """
        # a server makes the name of an interactive batch at random, and knows its model
        if self._options.kind is not BatchKind.INTERACTIVE:
            self._header_before = read_header(self._bucket, self.batch)
            self._request = self._request.with_facts(facts_of_header(self._header_before, self._ledger, self._request))
        reserved = self._reserve()
        if reserved.state is not BatchState.OPENING and self._request.source.digest and not self._had_inputs:
            return
        self._stored = reserved.stored
        writer = PartWriter(self.batch, self._request.defaults, self._request.facts)
        parts = self._missing_parts(writer, reserved)
        first = next(parts, None)
        if first is not None and not reserved.stored and first.total < PART_JOBS:
            # there is no other, for only the last part is not full
            yield self._submit_small(first)
            return
        if first is not None:
            yield from self._submit_parts(chain([first], parts), reserved)
        if self._read_error:
            raise self._stop(self._read_error, opening=reserved.state is BatchState.OPENING)
        if writer.total < reserved.stored:
            raise self._other_content(reserved.parts_digest, writer.parts_digest)
        if reserved.state is BatchState.OPENING:
            self._close(writer)

    @property
    def _had_inputs(self) -> bool:
        """Whether an earlier run stored input images: those of this one may have changed, so its rows are compared."""
        return self._header_before is not None and self._header_before.inputs

    def _submit_small(self, part: Part) -> int:
        """Store the only part and the header with the total at once, and open the batch; return the number of jobs."""
        header = self._header(total=part.total, parts_digest=part.parts_digest)
        with ThreadPoolExecutor(1, thread_name_prefix="header") as pool:
            written = pool.submit(write_header, self._bucket, header)
            self._store(part)
            written.result()
        return self._append(part, closed=True)

    def _submit_parts(self, parts: Iterable[Part], reserved: Reservation) -> Generator[int, None, None]:
        """Store parts and let workers lease their jobs. After each, yield the number of jobs so far."""
        if not reserved.stored:
            write_header(self._bucket, self._header())
        elif self._ledger.batch(self.batch).paused_by is PausedBy.SUBMISSION:
            # an earlier run stopped at invalid rows; this one may have a higher --max-invalid
            self._ledger.resume(self.batch)
        with closing(ordered_parallel_map(parts, self._store, threads=_STORE_THREADS, group=1)) as stored:
            for part, _ in stored:
                yield self._append(part)

    def _reserve(self) -> Reservation:
        """Create the batch, or find that an earlier run of this submission has created it."""
        options, digest = self._options, self._request.digest
        # the name of a batch that the ledger has was checked before its creation
        checked = options.kind is BatchKind.INTERACTIVE or self._ledger.batch_summaries([self.batch])
        if not checked and (error := self._manifest_conflict()):
            raise error
        reserved = self._ledger.create_batch(
            self.batch,
            digest=digest,
            model=self._request.model,
            priority=options.priority,
            budget=options.failure_budget,
            canary=options.canary,
            webhook=options.webhook,
            kind=options.kind,
            owner=options.owner,
            keep_s=options.keep_s,
            preempt=options.preempt,
        )
        if reserved.digest != digest:
            raise self._other_content(reserved.digest, digest)
        if reserved.state in {BatchState.CANCELLED, BatchState.DELETING, BatchState.RECOVERING}:
            raise ConflictError(f"batch {self.batch!r} is {reserved.state}; choose another --batch name")
        return reserved

    def _manifest_conflict(self) -> InputError | None:
        """Return why the bucket must not get a batch of this name, which the ledger has not; None if it may."""
        header = self._header_before
        if header is None:
            return None
        if header.digest != self._request.digest:
            return self._other_content(header.digest, self._request.digest)
        if header.total is not None:
            # its submission has ended, or would continue with what the ledger has: so the ledger was lost since
            return ConflictError(
                f"batch {self.batch!r} is in the bucket, but not in the ledger: `latentfarm recover {self.batch}` "
                "restores it without rendering finished images again"
            )
        return None

    def _missing_parts(self, writer: PartWriter, reserved: Reservation) -> Iterator[Part]:
        """Yield the parts that no earlier run has stored."""
        for part in self._parts(writer):
            same = part.total != reserved.stored or part.parts_digest == reserved.parts_digest
            extends = part.first >= reserved.stored and reserved.state is BatchState.OPENING
            if not same or (part.total > reserved.stored and not extends):
                raise self._other_content(reserved.parts_digest, part.parts_digest)
            if extends:
                yield part

    def _parts(self, writer: PartWriter) -> Iterator[Part]:
        """Yield all parts. An error of the rows ends them early; it is raised after the parts before it are stored."""
        try:
            for number, row in self._request.rows(self._bucket):
                self.report.add(row)
                if isinstance(row, RowError):
                    if self.report.exceeds(self._options.max_invalid):
                        raise self.report.error("")
                    yield from writer.add_invalid(row.text, number, row.id)
                else:
                    self._has_inputs |= not row.model_fields_set.isdisjoint(_INPUT_FIELDS)
                    yield from writer.add(row, number)
            if not self.report.valid:
                raise self.report.error("") if self.report.invalid else no_prompt_error(self._request)
        except InputError as error:
            self._read_error = error
        else:
            yield from writer.flush()

    def _store(self, part: Part) -> None:
        part.store(self._bucket, self.batch)

    def _append(self, part: Part, *, closed: bool = False) -> int:
        """Let workers lease the jobs of a stored part; return the number of jobs so far."""
        self._append_jobs(part.first, part.total, part.parts_digest, closed=closed, invalid=part.invalid)
        self._stored = part.total
        return part.total

    def _close(self, writer: PartWriter) -> None:
        """Record that the manifest is complete, in the bucket and then in the ledger."""
        write_header(self._bucket, self._header(total=writer.total, parts_digest=writer.parts_digest))
        self._append_jobs(writer.total, writer.total, writer.parts_digest, closed=True)

    def _append_jobs(
        self,
        before: int,
        total: int,
        parts_digest: str,
        *,
        closed: bool = False,
        invalid: dict[int, dict[str, str]] | None = None,
    ) -> None:
        state = self._ledger.append_jobs(
            self.batch, before=before, total=total, parts_digest=parts_digest, closed=closed, invalid=invalid
        )
        if state == "conflict":
            raise ConflictError(f"batch {self.batch!r} is also being submitted by another process; let one of them end")
        if state in {BatchState.CANCELLED, BatchState.DELETING}:
            raise ConflictError(f"batch {self.batch!r} was {state} while it was being submitted")

    def _header(self, *, total: int | None = None, parts_digest: str = "") -> Header:
        options = self._options
        return Header(
            batch=self.batch,
            model=self._request.model,
            digest=self._request.digest,
            total=total,
            parts_digest=parts_digest,
            priority=options.priority,
            failure_budget=options.failure_budget,
            canary=options.canary,
            webhook=options.webhook,
            kind=options.kind,
            owner=options.owner,
            keep_s=options.keep_s,
            preempt=options.preempt,
            model_facts=self._request.facts,
            # the rows of a batch that is not whole are not known yet
            inputs=self._has_inputs or total is None,
        )

    def _stop(self, error: InputError, *, opening: bool) -> InputError:
        """Pause the batch, or remove it if it has no job. Return the error with this outcome.

        A batch that is whole stays as it is: an input image may be gone since.
        """
        report = self.report
        if not opening and self._had_inputs:
            outcome = f"batch {self.batch}, which was submitted before, is unchanged"
        elif self._stored:
            # a message of the rows quotes prompts, and Redis must not hold them
            rows = f"{report.invalid:,} of {report.rows:,} rows are invalid"
            reason = rows if report.invalid else str(error).splitlines()[0]
            self._ledger.pause(self.batch, PausedBy.SUBMISSION, reason)
            outcome = (
                f"batch {self.batch} is paused with its first {self._stored:,} jobs: run `latentfarm delete "
                f"{self.batch}` and submit the corrected file, or submit this one again with a higher --max-invalid"
            )
        else:
            delete_batch(self._ledger, self._bucket, self.batch)
            outcome = "nothing was enqueued"
        return report.error(outcome) if report.invalid else InputError(f"{error}; {outcome}")

    def _other_content(self, theirs: str, ours: str) -> ConflictError:
        content = "content, input images" if self._has_inputs or self._had_inputs else "content"
        return ConflictError(
            f"batch {self.batch!r} exists with other {content} or options (its digest is {theirs[:12]}, yours "
            f"{ours[:12]}); choose another --batch name"
        )

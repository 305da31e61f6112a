"""Handing a batch in: rows are read, numbered and stored in parts, and each part may be leased as soon as it is stored.

Memory is bounded whatever the size: a few parts are on their way at any time. Killed at any point and run again, a
submission finds its parts and goes on behind them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from latentfarm.batch_state import PausedBy
from latentfarm.errors import InputError
from latentfarm.job import check_batch_name
from latentfarm.ledger import Ledger, Reservation
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import batch_prefix
from latentfarm.storage.manifest import Header, Part, PartWriter, read_header, write_header
from latentfarm.submission.prompts import RowError
from latentfarm.submission.request import Request, SubmitOptions
from latentfarm.submission.validation import ValidationReport, no_prompt

_STORE_THREADS = 4
#: parts on their way to the bucket, about 250 kB each
_MAX_PARTS_IN_FLIGHT = 8


class Submission:
    """One run of handing a batch in."""

    def __init__(
        self,
        ledger: Ledger,
        bucket: Bucket,
        request: Request,
        rules: SubmitOptions,
        *,
        batch: str | None = None,
        on_stored: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.batch = request.name if batch is None else check_batch_name(batch)
        self.found = ValidationReport()
        self._ledger = ledger
        self._bucket = bucket
        self._request = request
        self._rules = rules
        self._on_stored = on_stored
        self._stored = 0

    def run(self) -> None:
        """Store what is not stored yet, opening each part as it is.

        ``on_stored`` is called with the number of jobs that can be leased.

        Raises:
            InvalidRowsError: too many rows are wrong. Nothing was enqueued, or the batch is paused with what it has.
            InputError: the name belongs to another batch, or to one that is over for good.
        """
        reserved = self._reserve()
        if reserved.state in {"open", "complete"} and self._request.source.digest:
            return
        self._resume_own_pause(reserved)
        if not reserved.stored:
            self._refuse_forgotten(fresh=reserved.fresh)
            write_header(self._bucket, self._header())
        self._store_all(reserved)

    def _reserve(self) -> Reservation:
        rules, digest = self._rules, self._request.digest
        reserved = self._ledger.create_batch(
            self.batch,
            digest=digest,
            model=self._request.model,
            priority=rules.priority,
            budget=rules.failure_budget,
            canary=rules.canary,
            webhook=rules.webhook,
        )
        if reserved.digest != digest:
            raise _other_content(self.batch, reserved.digest, digest)
        if reserved.state in {"cancelled", "deleting", "recovering"}:
            raise InputError(f"batch {self.batch!r} is {reserved.state}; choose another --batch name")
        return reserved

    def _refuse_forgotten(self, *, fresh: bool) -> None:
        """Refuse a name that was free in the ledger, ``fresh``, but not in the bucket: a manifest is never overwritten.

        A name that was not is our own earlier try's, which may have come as far as the last header.

        Raises:
            InputError: another batch lies there, or this very one, whose record was lost.
        """
        header = read_header(self._bucket, self.batch)
        if header is None or (header.digest == self._request.digest and (header.total is None or not fresh)):
            return
        self._ledger.mark_deleting(self.batch)
        self._ledger.delete_batch(self.batch)
        if header.digest != self._request.digest:
            raise _other_content(self.batch, header.digest, self._request.digest)
        raise InputError(
            f"batch {self.batch!r} lies in the bucket, but the ledger has lost it: `latentfarm recover {self.batch}` "
            "brings it back, and nothing that is finished is rendered again"
        )

    def _resume_own_pause(self, reserved: Reservation) -> None:
        # a submission that stopped paused its batch; that it runs again, perhaps with more tolerance, lifts the pause
        if reserved.stored and self._ledger.batch(self.batch).paused_by is PausedBy.SUBMISSION:
            self._ledger.resume(self.batch)

    def _store_all(self, reserved: Reservation) -> None:
        writer = PartWriter(self.batch, self._request.defaults)
        in_flight: deque[tuple[Part, Future[None]]] = deque()
        self._stored = reserved.stored
        unreadable: InputError | None = None
        with ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="store") as pool:
            try:
                for part in self._parts(writer):
                    if self._is_there(part, reserved):
                        continue
                    in_flight.append((part, pool.submit(part.store, self._bucket, self.batch)))
                    # the last one is kept: it may have to be opened together with the end
                    while len(in_flight) > _MAX_PARTS_IN_FLIGHT or (len(in_flight) > 1 and in_flight[0][1].done()):
                        self._open(*in_flight.popleft())
            except _UnreadableError as error:
                unreadable = error.reason
            while len(in_flight) > (0 if unreadable else 1):
                self._open(*in_flight.popleft())
            if unreadable:
                raise self._stop(unreadable)
            if writer.total < reserved.stored:
                raise _other_content(self.batch, reserved.parts_digest, writer.chain)
            if reserved.state == "opening":
                self._close(writer, in_flight)

    def _is_there(self, part: Part, reserved: Reservation) -> bool:
        """Return whether an earlier run stored the part."""
        if part.total == reserved.stored and part.chain != reserved.parts_digest:
            raise _other_content(self.batch, reserved.parts_digest, part.chain)
        if part.total > reserved.stored and reserved.state != "opening":
            raise _other_content(self.batch, reserved.parts_digest, part.chain)
        return part.total <= reserved.stored

    def _parts(self, writer: PartWriter) -> Iterator[Part]:
        try:
            for number, row in self._request.rows():
                self.found.add(row)
                if isinstance(row, RowError):
                    if self.found.too_many(self._rules.max_invalid):
                        raise self.found.error("")
                    yield from writer.add_wrong(row.text, number)
                else:
                    yield from writer.add(row, number)
            if not self.found.good:
                raise self.found.error("") if self.found.wrong else no_prompt(self._request)
        except InputError as error:
            raise _UnreadableError(error) from error
        yield from writer.rest()

    def _open(self, part: Part, stored: Future[None]) -> None:
        stored.result()
        self._grow(part, closed=False)

    def _close(self, writer: PartWriter, in_flight: deque[tuple[Part, Future[None]]]) -> None:
        """Open the last part, whose size may be odd, together with the end of the batch."""
        part = Part(0, writer.total, writer.total, b"", writer.chain)
        if in_flight:
            part, stored = in_flight.popleft()
            stored.result()
        write_header(self._bucket, self._header(total=writer.total, chain=writer.chain))
        self._grow(part, closed=True)

    def _header(self, *, total: int | None = None, chain: str = "") -> Header:
        rules = self._rules
        return Header(
            batch=self.batch,
            model=self._request.model,
            digest=self._request.digest,
            total=total,
            chain=chain,
            priority=rules.priority,
            failure_budget=rules.failure_budget,
            canary=rules.canary,
            webhook=rules.webhook,
        )

    def _grow(self, part: Part, *, closed: bool) -> None:
        state = self._ledger.append_jobs(
            self.batch, before=part.first, total=part.total, parts_digest=part.chain, closed=closed, invalid=part.wrong
        )
        if state == "conflict":
            raise InputError(f"batch {self.batch!r} is being submitted by another process too; let one of them end")
        if state in {"cancelled", "deleting"}:
            raise InputError(f"batch {self.batch!r} was {state} while it was submitted")
        self._stored = part.total
        self._on_stored(part.total)

    def _stop(self, error: InputError) -> InputError:
        """Leave nothing behind if nothing was opened, else a paused batch; return the error that says which."""
        if self._stored:
            # the error's own text quotes rows, and no prompt may lie in Redis
            rows = f"{self.found.wrong:,} of {self.found.good + self.found.wrong:,} rows are wrong"
            reason = rows if self.found.wrong else str(error).splitlines()[0]
            self._ledger.pause(self.batch, PausedBy.SUBMISSION, reason)
            outcome = (
                f"batch {self.batch} is paused with its first {self._stored:,} jobs: `latentfarm delete {self.batch}` "
                "and submit the mended file, or submit this one again with a higher --max-invalid"
            )
        else:
            self._ledger.mark_deleting(self.batch)
            for _ in self._bucket.delete_all(batch_prefix(self.batch)):
                pass
            self._ledger.delete_batch(self.batch)
            outcome = "nothing was enqueued"
        return self.found.error(outcome) if self.found.wrong else InputError(f"{error}; {outcome}")


class _UnreadableError(Exception):
    """The source cannot be read on, for ``reason``; what the store or the ledger says is another matter."""

    def __init__(self, reason: InputError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _other_content(batch: str, theirs: str, ours: str) -> InputError:
    return InputError(
        f"batch {batch!r} exists with other content or options (its digest is {theirs[:12]}, yours {ours[:12]}); "
        "choose another --batch name"
    )

"""Handing a batch in: rows are read, numbered and stored in parts, and each part may be leased as soon as it is stored.

Memory is bounded whatever the size: a few parts are on their way at any time. Killed at any point and run again, a
submission finds its parts and goes on behind them.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentfarm.bucket import Bucket, batch_prefix
from latentfarm.errors import InputError, InvalidRowsError
from latentfarm.expansion import Expansion
from latentfarm.job import Defaults, Row, check_batch_name, check_model_alias
from latentfarm.ledger import Ledger, Reservation
from latentfarm.ledger.ledger import DEFAULT_BUDGET
from latentfarm.manifest import Header, Part, PartWriter, read_header, write_header
from latentfarm.prompts import Problem, ReadOptions, Source, SourceLike, check_defaults, open_source
from latentfarm.webhooks import check_url

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: files of fewer rows are checked whole before anything is opened
CHECK_FIRST_ROWS = 100_000
#: of a larger file, this share of wrong rows stops the submission, looked at after the first 1,000 rows
DEFAULT_MAX_INVALID = 0.01
_INVALID_AFTER = 1_000
#: wrong rows after which a check gives up; nobody mends them one by one
_CHECK_GIVES_UP = 10_000
#: wrong rows that are told one by one; the rest is counted
_SHOWN_PROBLEMS = 20
_STORE_THREADS = 4
#: parts on their way to the bucket, about 250 kB each
_MAX_PARTS_IN_FLIGHT = 8
#: how the reason of a pause begins that a submission made
_PAUSED_BY_SUBMISSION = "submission: "


@dataclass(frozen=True)
class Rules:
    """How a batch is to run.

    ``canary``: render the first so many jobs, the rest waits for ``resume``; 0 for none. ``failure_budget``: the share
    of failures that pauses the batch; 0 for none. ``webhook``: an https URL that is told of the end. ``check_first``:
    read the whole file before anything is opened; None does so below 100,000 rows. ``max_invalid``: the share of wrong
    rows that stops a submission that was not checked first.
    """

    priority: int = 0
    canary: int = 0
    failure_budget: float = DEFAULT_BUDGET
    webhook: str = ""
    check_first: bool | None = None
    max_invalid: float = DEFAULT_MAX_INVALID


@dataclass(frozen=True)
class Request:
    """What a user hands in: rows, what each becomes, and what they leave open."""

    source: Source
    model: str
    defaults: Defaults
    expansion: Expansion
    reading: ReadOptions

    @property
    def digest(self) -> str:
        """What tells this batch from any other: its content and every option that decides on its jobs.

        Of a stream, which cannot be read twice, it is made of the options only; its parts' digests tell the rest.
        """
        options = [self.model, self.defaults.given(), self.expansion.key, repr(self.reading)]
        content = self.source.digest or "stream"
        return hashlib.sha256(json.dumps([*options, content], sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """A name for the batch: of the same file and options always the same, of a stream always another."""
        stem = Path(self.source.name).name.partition(".")[0]
        slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:40].rstrip("-") or "batch"
        return f"{slug}-{self.digest[:8] if self.source.digest else uuid.uuid4().hex[:8]}"

    def rows(self) -> Iterator[tuple[int, Row | Problem]]:
        """Yield each row with its number in the source, after its expansion."""
        plain = self.expansion.is_plain
        for number, found in enumerate(self.source.read()):
            if isinstance(found, Problem):
                yield number, found
            elif plain:
                yield number, found.row
            else:
                try:
                    for row in self.expansion.rows(self._with_negative(found.row), number):
                        yield number, row
                except InputError as error:
                    yield number, Problem(f"{found.place}: {error}", "expansion")

    def _with_negative(self, row: Row) -> Row:
        """Fill in the batch's negative prompt, which may hold choices of its own."""
        negative = self.defaults.negative_prompt
        if negative is None or row.negative_prompt is not None:
            return row
        return row.model_copy(update={"negative_prompt": negative})


def make_request(
    source: SourceLike,
    reading: ReadOptions,
    *,
    model: str,
    expansion: Expansion,
    client: S3Client | None = None,
    **defaults: Any,
) -> Request:
    """Return what is to be handed in; nothing is read yet but what it takes to know the source.

    Raises:
        InputError: the source is not there, or an option is wrong.
    """
    check_model_alias(model)
    opened = open_source(source, reading, client=client)
    return Request(opened, model, check_defaults(defaults), expansion, reading)


@dataclass
class Findings:
    """Wrong rows, counted; the first of them in full."""

    good: int = 0
    wrong: int = 0
    shown: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row | Problem) -> None:
        """Take in the next row."""
        if isinstance(row, Problem):
            self.wrong += 1
            self.reasons[row.reason] += 1
            if len(self.shown) < _SHOWN_PROBLEMS:
                self.shown.append(row.text)
        else:
            self.good += 1

    def too_many(self, share: float) -> bool:
        """Whether more than ``share`` of the rows are wrong, once there are enough of them to tell."""
        seen = self.good + self.wrong
        return seen >= _INVALID_AFTER and self.wrong > share * seen

    def error(self, outcome: str) -> InvalidRowsError:
        """Return what to raise; ``outcome`` says what became of the batch."""
        return InvalidRowsError(self.shown, self.wrong, reasons=self.reasons, outcome=outcome)


def check(request: Request, rules: Rules) -> None:
    """Read the rows before anything is opened: all of a small file, or the first 100,000.

    Raises:
        InvalidRowsError: some are wrong; in a file that will be streamed, more than ``rules.max_invalid``.
        InputError: there is no row at all, the source cannot be read twice and was to be checked first, or the
            webhook is no https URL.
    """
    if rules.webhook:
        check_url(rules.webhook)
    if rules.check_first is False:
        return
    if request.source.digest is None:
        if rules.check_first:
            raise InputError(f"{request.source.name} cannot be read twice, so it cannot be checked first; save it")
        return
    found, whole = Findings(), True
    for _, row in request.rows():
        found.add(row)
        if found.wrong >= _CHECK_GIVES_UP:
            rows = f"{found.good + found.wrong:,} rows"
            raise found.error(f"nothing was enqueued, and the rest was not read after {rows}")
        if not rules.check_first and found.good + found.wrong >= CHECK_FIRST_ROWS:
            whole = False
            break
    if found.wrong and (whole or found.too_many(rules.max_invalid)):
        raise found.error("nothing was enqueued")
    if not found.good:
        raise _no_prompt(request)


class Submission:
    """One run of handing a batch in."""

    def __init__(
        self,
        ledger: Ledger,
        bucket: Bucket,
        request: Request,
        rules: Rules,
        *,
        batch: str | None = None,
        on_stored: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.batch = request.name if batch is None else check_batch_name(batch)
        self.found = Findings()
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
        reserved = self._ledger.reserve(
            self.batch,
            digest=digest,
            model=self._request.model,
            priority=rules.priority,
            budget=rules.failure_budget,
            hold=rules.canary,
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
        self._ledger.begin_delete(self.batch)
        self._ledger.forget(self.batch)
        if header.digest != self._request.digest:
            raise _other_content(self.batch, header.digest, self._request.digest)
        raise InputError(
            f"batch {self.batch!r} lies in the bucket, but the ledger has lost it: `latentfarm recover {self.batch}` "
            "brings it back, and nothing that is finished is rendered again"
        )

    def _resume_own_pause(self, reserved: Reservation) -> None:
        # a submission that stopped paused its batch; that it runs again, perhaps with more tolerance, lifts the pause
        if reserved.stored and self._ledger.batch(self.batch).paused.startswith(_PAUSED_BY_SUBMISSION):
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
                raise _other_content(self.batch, reserved.chain, writer.chain)
            if reserved.state == "opening":
                self._close(writer, in_flight)

    def _is_there(self, part: Part, reserved: Reservation) -> bool:
        """Return whether an earlier run stored the part."""
        if part.total == reserved.stored and part.chain != reserved.chain:
            raise _other_content(self.batch, reserved.chain, part.chain)
        if part.total > reserved.stored and reserved.state != "opening":
            raise _other_content(self.batch, reserved.chain, part.chain)
        return part.total <= reserved.stored

    def _parts(self, writer: PartWriter) -> Iterator[Part]:
        try:
            for number, row in self._request.rows():
                self.found.add(row)
                if isinstance(row, Problem):
                    if self.found.too_many(self._rules.max_invalid):
                        raise self.found.error("")
                    yield from writer.add_wrong(row.text, number)
                else:
                    yield from writer.add(row, number)
            if not self.found.good:
                raise self.found.error("") if self.found.wrong else _no_prompt(self._request)
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
        state = self._ledger.grow(
            self.batch, before=part.first, total=part.total, chain=part.chain, closed=closed, wrong=part.wrong
        )
        if state == "elsewhere":
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
            self._ledger.pause(self.batch, _PAUSED_BY_SUBMISSION + reason)
            outcome = (
                f"batch {self.batch} is paused with its first {self._stored:,} jobs: `latentfarm delete {self.batch}` "
                "and submit the mended file, or submit this one again with a higher --max-invalid"
            )
        else:
            self._ledger.begin_delete(self.batch)
            for _ in self._bucket.delete_all(batch_prefix(self.batch)):
                pass
            self._ledger.forget(self.batch)
            outcome = "nothing was enqueued"
        return self.found.error(outcome) if self.found.wrong else InputError(f"{error}; {outcome}")


class _UnreadableError(Exception):
    """The source cannot be read on, for ``reason``; what the store or the ledger says is another matter."""

    def __init__(self, reason: InputError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _no_prompt(request: Request) -> InputError:
    return InputError(f"{request.source.name} holds no prompt; write one a line")


def _other_content(batch: str, theirs: str, ours: str) -> InputError:
    return InputError(
        f"batch {batch!r} exists with other content or options (its digest is {theirs[:12]}, yours {ours[:12]}); "
        "choose another --batch name"
    )

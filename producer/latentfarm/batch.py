"""A submitted batch: its progress, control, jobs, results and images."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentfarm.batch_drafts import BatchDrafts, DraftReport, DraftSelection
from latentfarm.batch_jobs import JobStatus, PresignedUrl, job_status, joined_result
from latentfarm.batch_picks import ImagePick, check_pick, check_pick_words, decide, has_pick, select_indices
from latentfarm.batch_state import ACTIVE, BatchState, PausedBy
from latentfarm.batch_status import BatchStatus, batch_status
from latentfarm.connection import Connection
from latentfarm.errors import ConflictError, InputError, NotFoundError
from latentfarm.job_state import INVALID_ROW, JobState
from latentfarm.ledger import MAX_JOBS_PER_CALL
from latentfarm.limits import PART_JOBS
from latentfarm.storage import results
from latentfarm.storage.bucket import check_expiry
from latentfarm.storage.deletion import delete_batch
from latentfarm.storage.keys import part_indices
from latentfarm.storage.part_reads import read_by_part
from latentfarm.storage.pick_state import UNCHANGED, Decision, NewPick, NewRating, PickCounts
from latentfarm.storage.picks import PickJournal

if TYPE_CHECKING:
    from latentfarm.fetch import FetchReport, Layout, Owner
    from latentfarm.fetch.preferences import PreferenceForm, PreferenceImages
    from latentfarm.storage.manifest import ManifestReader

#: seconds between two polls of ``Batch.wait``
_POLL_S = 0.25


class Batch:
    """A submitted batch. Methods raise ``UnavailableError`` if Redis or the store does not answer."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        rejected: Mapping[str, int] | None = None,
        notes: Mapping[str, int] | None = None,
        journal: PickJournal | None = None,
    ) -> None:
        self.connection = connection
        self.name = name
        #: invalid rows by reason, if this object was returned by ``submit``; their jobs have failed
        self.rejected = dict(rejected or {})
        #: numbers of rows by sentence, if this object was returned by ``submit``: what was mapped, dropped or chosen
        self.notes = dict(notes or {})
        self._ledger, self._bucket = connection.ledger, connection.bucket
        #: the picks as they were last read; a server passes one that it keeps, so that it reads each object once
        self.journal = journal or PickJournal(connection.bucket, name)

    def __repr__(self) -> str:
        return f"Batch({self.name!r})"

    @cached_property
    def _manifest(self) -> ManifestReader:
        # imported here: a status reads no manifest, and its models take long to build
        from latentfarm.storage.manifest import ManifestReader

        return ManifestReader(self._bucket)

    def status(self) -> BatchStatus:
        """Return the batch's progress."""
        return batch_status(self._ledger.batch(self.name))

    def wait(
        self, *, timeout_s: float | None = None, progress: Callable[[BatchStatus], None] | None = None
    ) -> BatchStatus:
        """Wait until the batch is final or needs attention. Return its status.

        When it is final, all its results are in the bucket.

        Args:
            timeout_s: seconds [default: no limit].
            progress: called with the status about four times a second.

        Raises:
            TimeoutError: ``timeout_s`` has passed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            status = self.status()
            if progress is not None:
                progress(status)
            if status.is_final:
                results.flush_batch(self._ledger, self._bucket, self.name)
            if status.is_final or status.needs_attention:
                return status
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(
                    f"batch {self.name} is not complete after {timeout_s:g} s: {status.ended} of {status.total} jobs"
                )
            time.sleep(_POLL_S)

    # -- control: decisions are durable, and repeating one changes nothing --------------------------------------

    def pause(self, reason: str = "", *, now: bool = False) -> BatchStatus:
        """Start no more jobs until ``resume``. Running images are finished; with ``now`` they are parked.

        Raises:
            ConflictError: the batch is not active.
        """
        self._require_active(self._ledger.pause(self.name, PausedBy.USER, reason, now=now))
        self._store_control()
        return self.status()

    def resume(self) -> BatchStatus:
        """Continue after a pause or a canary. The failure budget starts again from zero.

        Raises:
            ConflictError: the batch is not active.
        """
        self._require_active(self._ledger.resume(self.name))
        self._store_control()
        status = self.status()
        self.connection.ring(status.model)
        return status

    def cancel(self, *, flush: bool = True) -> BatchStatus:
        """End the batch for good; finished images stay. Store its results, unless workers are to do so later."""
        self._ledger.cancel(self.name)
        self._store_control()
        if flush:
            results.flush_batch(self._ledger, self._bucket, self.name)
        return self.status()

    def retry(self, *, code: str | None = None) -> int:
        """Run failed jobs again; return their number.

        Args:
            code: only jobs that failed with this error code [default: all but those of invalid rows].

        Raises:
            InputError: the batch is cancelled, or ``code`` is that of invalid rows.
        """
        if code == INVALID_ROW:
            raise InputError(f"jobs of invalid rows cannot run (code {code}); correct the file and submit it again")
        retried, failed = 0, self._failed_with_codes(code)
        while group := list(islice(failed, MAX_JOBS_PER_CALL)):
            retried += self._ledger.retry(self.name, group)
        if retried:
            self.connection.ring(self._ledger.batch(self.name).model)
        return retried

    def _failed_with_codes(self, wanted: str | None) -> Iterator[tuple[int, str]]:
        failed = self._ledger.indices(self.name, JobState.FAILED)
        for result in results.read_indices(self._ledger, self._bucket, self.name, failed):
            code = result.get("error", {}).get("code", "")
            if code != INVALID_ROW and wanted in {None, code}:
                yield result["index"], code

    def set_priority(self, priority: int) -> BatchStatus:
        """Set the priority. Batches of a higher priority run first."""
        self._ledger.set_priority(self.name, priority)
        self._store_control()
        return self.status()

    def delete(self, *, progress: Callable[[int], None] = lambda _: None) -> int:
        """Cancel the batch and remove it from the ledger and the bucket. Return the number of objects removed.

        If it is interrupted, a second call continues. ``progress`` is called with the number of objects so far.
        """
        return delete_batch(self._ledger, self._bucket, self.name, progress=progress)

    def _store_control(self) -> None:
        from latentfarm.storage.batch_control import BatchControl, write_control

        # the ledger applies a decision at once; the copy in the bucket is for `recover`
        write_control(self._bucket, self.name, BatchControl.of(self._ledger.batch(self.name)))

    def _require_active(self, state: BatchState) -> None:
        if state not in ACTIVE:
            raise ConflictError(f"batch {self.name!r} is {state}; only an open batch can be paused or resumed")

    # -- jobs, results and images --------------------------------------------------------------------------------

    def jobs(self, *, state: JobState | None = None) -> Iterator[JobStatus]:
        """Yield the jobs in order: all, or those in one state."""
        total = self._ledger.batch(self.name).total
        for part in range(-(-total // PART_JOBS)):
            indices = part_indices(part, total)
            if state is not None and state not in self._ledger.states(self.name, indices.start, indices.stop):
                continue
            for result in results.read_range(self._ledger, self._bucket, self.name, indices):
                if state is None or result["state"] == state.word:
                    yield self._job_status(result)

    def job(self, index: int) -> JobStatus:
        """Return one job.

        Raises:
            NotFoundError: the batch has no such index.
        """
        total = self._ledger.batch(self.name).total
        if not 0 <= index < total:
            raise NotFoundError(f"job {self.name}/{index} does not exist; the batch has the jobs 0 to {total - 1}")
        found = results.read_range(self._ledger, self._bucket, self.name, range(index, index + 1))
        return self._job_status(next(found))

    def results(self, indices: Iterable[int] | None = None, *, picks: Collection[str] = ()) -> Iterator[dict[str, Any]]:
        """Yield a result for each job, in order: its request in diffusers' names, joined with its receipt or error.

        Args:
            indices: those of the jobs, rising [default: all].
            picks: only jobs whose image is ``picked``, ``rejected`` or ``none`` of both [default: all].
        """
        words = check_pick_words(picks)
        self.journal.refresh()
        total = self._ledger.batch(self.name).total if indices is None else 0
        wanted = select_indices(self.journal, words, indices, total)
        yield from (found for found in self._joined_results(wanted) if has_pick(found, words))

    def results_at_once(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Yield the results of jobs of few parts, given by rising indices; the parts are read at the same time."""
        self.journal.refresh()
        return read_by_part(indices, self._joined_results)

    def _joined_results(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        for line in results.read_indices(self._ledger, self._bucket, self.name, indices):
            entry = self._manifest.entry(self.name, line["index"])
            yield joined_result(line, entry, self.journal.fields_of(line))

    def picks(self) -> list[Decision]:
        """Return what was decided about images, by rising index of their jobs."""
        self._ledger.require_batch(self.name)
        self.journal.refresh()
        return self.journal.decisions()

    def pick(
        self, indices: Iterable[int], pick: NewPick | str = UNCHANGED, *, rating: NewRating = UNCHANGED
    ) -> PickCounts:
        """Decide about the images of done jobs and drafts: ``picked`` or ``rejected``, a rating from 1 to 5, or both.

        None removes a value; what is not given stays. Return how many images of the batch are picked, rejected, rated.

        Raises:
            InputError: a value or an index is invalid.
            ConflictError: a job is neither done nor drafted.
        """
        chosen = check_pick(pick) if isinstance(pick, str) else pick
        return self.decide([ImagePick(each, chosen, rating) for each in indices])

    def decide(self, wanted: Sequence[ImagePick], *, by: str = "") -> PickCounts:
        """Make several decisions about images, all or none, as ``pick``. ``by`` is the name of the API key."""
        return decide(self._ledger, self._bucket, self.journal, wanted, by=by)

    # -- drafts: to repeat a call changes nothing, and an interrupted one is continued ----------------------------

    def drafts(self, selection: DraftSelection | None = None) -> Iterator[dict[str, Any]]:
        """Yield the results of these drafts [default: all], the best first if the others are left out for them."""
        return self._drafts.lines(selection or DraftSelection())

    def price_drafts(self, selection: DraftSelection) -> DraftReport:
        """Return what it costs to finish these drafts, and what is saved if the others are discarded.

        Raises:
            InputError: the selection is invalid, or no draft has the number or hash that it needs.
            ConflictError: a job that it names is no draft.
        """
        return self._drafts.price(selection)

    def finish(self, selection: DraftSelection) -> DraftReport:
        """Render these drafts to their end, from their checkpoints.

        Raises:
            InputError: the selection is invalid, or no draft has the number or hash that it needs.
            ConflictError: a job that it names is no draft, or the batch is cancelled. Nothing is finished then.
        """
        return self._drafts.finish(selection)

    def discard(self, selection: DraftSelection, *, flush: bool = True) -> DraftReport:
        """End these drafts without an image: their jobs are cancelled, their checkpoints and previews deleted.

        Store the results, unless workers are to do so later.

        Raises:
            InputError: the selection is invalid, or no draft has the number or hash that it needs.
            ConflictError: a job that it names is no draft. Nothing is discarded then.
        """
        return self._drafts.discard(selection, flush=flush)

    @property
    def _drafts(self) -> BatchDrafts:
        return BatchDrafts(self.connection, self.journal, self._manifest)

    # -- images -----------------------------------------------------------------------------------------------

    def fetch(  # noqa: PLR0913 - all are options, passed by name
        self,
        directory: str | Path,
        *,
        layout: Layout = "files",
        name_template: str | None = None,
        skip_fetched: bool = False,
        states: Collection[JobState] = (),
        picks: Collection[str] = (),
        image_format: str | None = None,
        drafts: bool = False,
        force: bool = False,
        progress: Callable[[FetchReport], None] = lambda _: None,
    ) -> FetchReport:
        """Download finished images and write ``results.jsonl``. Files that exist already are kept.

        Args:
            directory: created if it does not exist.
            layout: ``files`` adds a ``metadata.jsonl`` for Hugging Face's ImageFolder; ``webdataset`` writes tar
                shards of 1,000 jobs, and ``results.jsonl`` with an ``index.parquet`` into ``__tables__``.
            name_template: names of image files, such as ``{id}-{seed}`` [default: ``{index:06d}``].
            skip_fetched: skip images that an earlier fetch into the directory has fetched, even if their files were
                removed since.
            states: only jobs in these states [default: all].
            picks: only jobs whose image is ``picked``, ``rejected`` or ``none`` of both [default: all].
            image_format: only jobs of this format [default: all]. A webdataset has one format.
            drafts: also fetch the previews of drafts, which the finished images replace.
            force: write into the directory of another batch, whose images are removed, and over files of others.
            progress: called after each job with the counts so far.

        Raises:
            InputError: names are unsafe or not unique, a webdataset would have several formats, or the directory cannot
                be written or belongs to another batch.
        """
        # imported here: Pillow and the writers of tables are slow to import
        from latentfarm.fetch import DEFAULT_TEMPLATE, FetchOptions, fetch_batch

        options = FetchOptions(
            layout=layout,
            name_template=name_template or DEFAULT_TEMPLATE,
            skip_fetched=skip_fetched,
            states={state.word for state in states},
            image_format=image_format,
            drafts=drafts,
            force=force,
        )
        chosen = partial(self.results, picks=check_pick_words(picks))
        return fetch_batch(self._bucket, chosen, Path(directory), self.owner(), options=options, progress=progress)

    def preferences(
        self, *, images: PreferenceImages = "keys", form: PreferenceForm = "preference"
    ) -> Generator[bytes, None, None]:
        """Yield the pieces of a Parquet file of pairs of images, of which the first is preferred by its pick or rating.

        Args:
            images: ``bytes`` writes the images, ``keys`` only their keys in the bucket.
            form: ``preference`` has prompt, chosen and rejected; ``pickapic`` the columns of diffusers' DPO scripts.

        Raises:
            InputError: pyarrow is missing, or an option is invalid.
        """
        from latentfarm.fetch.preferences import PreferenceOptions, preference_set

        options = PreferenceOptions(images, form)
        total = self._ledger.batch(self.name).total
        decided = [each.index for each in self.picks() if each.index < total]
        return preference_set(self._bucket, self.results(decided), options)

    def owner(self) -> Owner:
        """Return what identifies the batch in the folder that it is fetched into."""
        from latentfarm.fetch import Owner

        return Owner(self.name, self._ledger.batch(self.name).digest)

    def presigned(self, *, expires_s: int = 3600, picks: Collection[str] = ()) -> Iterator[PresignedUrl]:
        """Yield a URL for each finished image, in order.

        Args:
            expires_s: seconds from now, 1 to 604,800 (a week). URLs end earlier if the credentials do.
            picks: only images that are ``picked``, ``rejected`` or ``none`` of both [default: all].

        Raises:
            InputError: ``expires_s`` is out of range.
        """
        check_expiry(expires_s)
        for result in self.results(picks=picks):
            if result["state"] == JobState.DONE.word:
                expires = datetime.now(UTC) + timedelta(seconds=expires_s)
                url = self._bucket.presign(result["key"], expires_s=expires_s)
                yield PresignedUrl(job=result["job"], url=url, expires=expires.replace(microsecond=0))

    def _job_status(self, result: dict[str, Any]) -> JobStatus:
        return job_status(result, self._manifest.entry(self.name, result["index"]))

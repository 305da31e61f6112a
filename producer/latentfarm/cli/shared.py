"""Steps that several commands have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from latentfarm.batch import Batch
from latentfarm.batch_state import BatchState
from latentfarm.batch_status import BatchStatus
from latentfarm.cli.options import require_choice
from latentfarm.cli.output import echo_err, plural
from latentfarm.cli.status_text import format_ends, format_truncations
from latentfarm.cli.waiting import WaitWarnings
from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.job_state import JobState
from latentfarm.ledger import WorkerRecord

if TYPE_CHECKING:
    from latentfarm.fetch import FetchReport
    from latentfarm.submission.request import Request


def wait_for(
    batch: Batch,
    *,
    timeout_s: float | None = None,
    meanwhile: Callable[[], None] | None = None,
    starting: Callable[[], bool] = lambda: False,
    known: Sequence[str] = (),
) -> BatchStatus:
    """Wait with a progress bar until a batch has ended, then report its problems.

    Args:
        batch: the batch.
        timeout_s: seconds [default: no limit].
        meanwhile: called at each poll.
        starting: returns whether the command has started workers, which may not serve yet.
        known: warnings that were printed already.
    """
    from latentfarm.cli.progress import BatchProgress

    warn = WaitWarnings(batch.connection.ledger, starting=starting, known={batch.name: known} if known else {})
    with BatchProgress() as progress:

        def show(status: BatchStatus) -> None:
            progress(status)
            # what needs attention ends the wait, with a message of its own
            if not (status.is_final or status.needs_attention):
                warn([status])
            if meanwhile is not None:
                meanwhile()

        try:
            status = batch.wait(timeout_s=timeout_s, progress=show)
        except KeyboardInterrupt:
            echo_err("interrupted; run the same command again to continue")
            raise
    if status.failed:
        echo_err(f"{status.failed} of {status.total} jobs failed: `latentfarm jobs {batch.name} --state failed`")
    if status.state is BatchState.CANCELLED:
        echo_err(f"the batch was cancelled: {format_ends(status)}")
    if status.state is BatchState.DRAFTED:
        echo_err(
            f"{plural(status.drafted, 'draft')} to be finished or discarded: `latentfarm drafts {batch.name} --sheet "
            f"drafts.png`, then `latentfarm finish {batch.name} --indices ...` and `latentfarm discard {batch.name}`"
        )
    if status.truncated:
        echo_err(format_truncations(status))
    if status.needs_attention:
        echo_err(f"the batch is paused ({status.paused}): `latentfarm resume {batch.name}`")
    return status


def fail_if(problem: object) -> None:
    """End the command with exit code 1 if ``problem`` is true."""
    if problem:
        raise typer.Exit(1)


def statuses_of(farm: Farm, names: Iterable[str]) -> list[BatchStatus]:
    """Return the status of these batches, in their order. Batches deleted meanwhile are left out."""
    found = []
    for name in names:
        try:
            found.append(Batch(farm.connection, name).status())
        except InputError:
            continue
    return found


def worker_data(worker: WorkerRecord) -> dict[str, Any]:
    """Return a worker as ``--json`` prints it, with times in ISO 8601."""
    fields = asdict(worker)
    times = {name: fields.pop(f"{name}_ms") for name in ("since", "seen")}
    return {
        "worker": fields.pop("name"),
        **fields,
        **{name: datetime.fromtimestamp(ms / 1000, UTC).isoformat() for name, ms in times.items()},
    }


def parse_job_states(words: list[str] | None) -> frozenset[JobState]:
    """Return the states of ``--state``; empty if the option was not given.

    Raises:
        InputError: a state is unknown.
    """
    known = {state.word: state for state in JobState}
    found = [word.strip() for each in words or [] for word in each.split(",")]
    return frozenset(known[require_choice("--state", word, list(known))] for word in found)


def parse_picks(words: list[str] | None) -> frozenset[str]:
    """Return the words of ``--pick``; empty if the option was not given.

    Raises:
        InputError: a word is unknown.
    """
    from latentfarm.storage.pick_state import PICK_WORDS

    found = [word.strip() for each in words or [] for word in each.split(",")]
    return frozenset(require_choice("--pick", word, PICK_WORDS) for word in found)


def check_folder(directory: Path, batch: str, request: Request, *, force: bool) -> None:
    """Check that a batch that is not submitted yet may be fetched into a folder.

    Raises:
        InputError: it may not.
    """
    from latentfarm.fetch import FetchOptions, OutputFolder, Owner

    OutputFolder(directory, Owner(batch, request.digest), FetchOptions(force=force)).check()


def fetch_into(
    batch: Batch,
    directory: Path,
    *,
    states: frozenset[JobState] = frozenset(),
    picks: frozenset[str] = frozenset(),
    **options: Any,
) -> FetchReport:
    """Download the images of a batch with a progress bar, and report the counts on stderr.

    ``options`` are those of ``Batch.fetch``.
    """
    from rich.filesize import decimal

    from latentfarm.cli.progress import CountProgress

    status, began = batch.status(), time.monotonic()
    total = sum(getattr(status, state.word) for state in states) if states else status.total
    if picks:
        total = min(total, _count_picks(batch, picks, status.total))
    with CountProgress("fetching", total) as progress:

        def show(report: FetchReport) -> None:
            rate = report.size_bytes / max(time.monotonic() - began, 1e-6)
            progress.show(report.jobs, decimal(report.size_bytes), f"{decimal(int(rate))}/s")

        try:
            fetched = batch.fetch(directory, states=states, picks=picks, progress=show, **options)
        except KeyboardInterrupt:
            echo_err("interrupted; run the same command again to continue")
            raise
    files = plural(fetched.downloaded, "shard" if options.get("layout") == "webdataset" else "file")
    text = f"{files} fetched into {directory}, {fetched.present} already present"
    text += f", {fetched.skipped} fetched before and skipped" if fetched.skipped else ""
    previews = fetched.states[JobState.DRAFTED.word] if options.get("drafts") else 0
    not_done = fetched.jobs - fetched.states[JobState.DONE.word] - previews
    text += f", {plural(previews, 'preview')} of drafts among them" if previews else ""
    echo_err(text + (f", {plural(not_done, 'job')} not done" if not_done else ""))
    return fetched


def _count_picks(batch: Batch, picks: frozenset[str], total: int) -> int:
    batch.journal.refresh()
    counts = batch.journal.counts()
    numbers = {"picked": counts.picked, "rejected": counts.rejected, "none": total - counts.picked - counts.rejected}
    return sum(numbers[word] for word in picks)


def write_contact_sheet(fetched: FetchReport) -> None:
    """Save an overview of the first images of a fetch beside them."""
    if not fetched.images:
        return
    from latentfarm.fetch.atomic_files import atomic_write
    from latentfarm.fetch.caption_fonts import CaptionFonts
    from latentfarm.fetch.contact_sheet import contact_sheet
    from latentfarm.fetch.report import CONTACT_SHEET

    fonts = CaptionFonts()
    with atomic_write(fetched.directory / CONTACT_SHEET) as opened:
        contact_sheet(fetched.images, fonts).save(opened, "PNG")
    if cure := fonts.cure():
        echo_err(f"contact sheet: {cure}")
    echo_err(f"contact sheet: {fetched.directory / CONTACT_SHEET}")

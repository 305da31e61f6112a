"""``wait`` and ``fetch``: from a submitted batch to pictures in a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from latentfarm.batch import Batch
from latentfarm.cli import options
from latentfarm.cli.options import print_json
from latentfarm.cli.progress import CountProgress, echo_err
from latentfarm.cli.results import StateWords, states_of, to_reader
from latentfarm.cli.shared import fail_if, wait_for
from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.fetch import DEFAULT_TEMPLATE, LAYOUTS, FetchReport, Layout
from latentfarm.job import JobState


def wait(
    batch: options.BatchName,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Give up after this, with exit code 1.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Return when every job of a batch has ended; exit 1 if one failed.

    It ends too, with exit code 1, when the batch is cancelled or has paused itself.

    Example: `latentfarm wait cats && latentfarm fetch cats -o cats`
    """
    found = Farm.from_env().batch(batch)
    try:
        status = wait_for(found, timeout_s=timeout)
        fail_if(status.failed or not status.complete)
    finally:
        if as_json:
            print_json(found.status().model_dump())


def fetch(
    batch: options.BatchName,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Where the pictures go; needed unless --presign."),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="files: a file a picture and the metadata.jsonl that Hugging Face's ImageFolder reads. webdataset: "
            "tar shards of 1,000 jobs, each sample a picture, .txt and .json, and index.parquet.",
        ),
    ] = "files",
    name_template: Annotated[
        str,
        typer.Option(
            metavar="TEMPLATE",
            help="How the files are called, such as {id}-{seed}; each gets the ending of its format. Fields: id, "
            "index, batch, seed, row, width, height, num_inference_steps, guidance_scale, scheduler. A name that is "
            "not safe on every system (/, .., a leading dot, control characters, Windows' reserved ones) or that two "
            "jobs share is an error before anything is downloaded.",
        ),
    ] = DEFAULT_TEMPLATE,
    state: StateWords = None,
    only_new: Annotated[
        bool,
        typer.Option(
            "--only-new",
            help="Pass over pictures that an earlier fetch into DIR has fetched, even if their files were moved away "
            "since. A plain re-run checks each file's sha256 and fetches what is missing or changed.",
        ),
    ] = False,
    presign: Annotated[
        bool,
        typer.Option(
            "--presign",
            help="Download nothing; print a URL for each finished picture, one a line (with --json an object a line: "
            "job, url, expires).",
        ),
    ] = False,
    expires: Annotated[
        int, typer.Option(metavar="SECONDS", help="How long the URLs of --presign can be read: 1 to 604800.")
    ] = 3600,
    as_json: options.Json = False,
) -> None:
    """Download the finished pictures of a batch and write results.jsonl; what is there already is left alone.

    Run again, it goes on where it stopped. Exit code 1 if a job of those asked for has failed.

    Example: `latentfarm fetch cats -o cats --name-template "{id}-{seed}"`
    """
    chosen = layout_of(layout)
    states = states_of(state)
    if output is None and not presign:
        raise InputError("fetch: write -o DIR, or --presign to print URLs")
    found = Farm.from_env().batch(batch)
    if presign:
        with to_reader() as lines:
            for each in found.presigned(expires_s=expires):
                lines.write(f"{each.model_dump_json() if as_json else each.url}\n".encode())
        return
    fetched = fetch_into(
        found, output or Path(), layout=chosen, name_template=name_template, only_new=only_new, states=states
    )
    if as_json:
        print_json(fetched_summary(batch, fetched))
    fail_if(fetched.states["failed"])


def layout_of(word: str) -> Layout:
    """Return the layout that ``--format`` names.

    Raises:
        InputError: there is no such one.
    """
    for layout in LAYOUTS:
        if word == layout:
            return layout
    raise InputError(f"--format {word!r}: write one of {', '.join(LAYOUTS)}")


def fetch_into(
    batch: Batch,
    directory: Path,
    *,
    layout: Layout = "files",
    name_template: str = DEFAULT_TEMPLATE,
    only_new: bool = False,
    states: frozenset[JobState] = frozenset(),
) -> FetchReport:
    """Download with a progress bar and say what was done."""
    status = batch.status()
    total = sum(getattr(status, state.word) for state in states) if states else status.total
    with FetchProgress(total) as progress:
        try:
            fetched = batch.fetch(
                directory,
                layout=layout,
                name_template=name_template,
                only_new=only_new,
                states=states,
                progress=progress,
            )
        except KeyboardInterrupt:
            echo_err("interrupted; run the same command again to go on")
            raise
    rest = fetched.jobs - fetched.states["done"]
    word = ("file" if layout == "files" else "shard") + ("" if fetched.downloaded == 1 else "s")
    text = f"{fetched.downloaded} {word} fetched into {directory}, {fetched.present} were there already"
    text += f", {fetched.skipped} pictures were fetched before" if fetched.skipped else ""
    echo_err(text + (f", {rest} are not done" if rest else ""))
    return fetched


def fetched_summary(batch: str, fetched: FetchReport) -> dict[str, Any]:
    """Return what ``--json`` prints of a fetch."""
    return {
        "batch": batch,
        "directory": str(fetched.directory),
        "downloaded": fetched.downloaded,
        "present": fetched.present,
        "skipped": fetched.skipped,
        "bytes": fetched.size_bytes,
        "states": dict(fetched.states),
        "results": str(fetched.results),
    }


class FetchProgress(CountProgress):
    """Shows jobs and bytes a second of a fetch."""

    def __init__(self, total: int) -> None:
        super().__init__("fetching", total)
        self._began = time.monotonic()

    def __call__(self, fetched: FetchReport) -> None:
        """Show how far it is."""
        rate = decimal(int(fetched.size_bytes / max(time.monotonic() - self._began, 1e-6)))
        self.show(fetched.jobs, decimal(fetched.size_bytes), f"{rate}/s")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(wait)
    app.command()(fetch)

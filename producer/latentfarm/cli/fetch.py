"""``wait`` and ``fetch``: from a submitted batch to images in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentfarm.cli import options
from latentfarm.cli.output import binary_stdout, print_json
from latentfarm.cli.shared import fail_if, fetch_into, parse_job_states, parse_picks, wait_for
from latentfarm.cli.waiting import warnings_of
from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.fetch import DEFAULT_TEMPLATE, LAYOUTS, FetchReport, Layout
from latentfarm.image_formats import IMAGE_FORMATS


def wait(
    batch: options.BatchName,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Stop after this time, with exit code 1 [default: none]"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Wait until every job of a batch has ended; drafts have. Warnings report why it waits.

    Exit code 1: a job failed, the batch was cancelled, or it paused itself.

    Example: `latentfarm wait cats && latentfarm fetch cats -o cats`
    """
    found = Farm.from_env().batch(batch)
    try:
        status = wait_for(found, timeout_s=timeout)
        fail_if(not status.succeeded)
    finally:
        if as_json:
            status = found.status()
            print_json({**status.model_dump(mode="json"), "warnings": warnings_of(found.connection.ledger, status)})


def fetch(
    batch: options.BatchName,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder for the images; required without --presign"),
    ] = None,
    layout: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="files, or webdataset: tar shards of 1,000 jobs")
    ] = "files",
    name_template: Annotated[
        str, typer.Option(metavar="TEMPLATE", help="Names of the files, such as {id}-{seed}")
    ] = DEFAULT_TEMPLATE,
    state: options.JobStates = None,
    pick: options.Picks = None,
    skip_fetched: Annotated[
        bool, typer.Option("--skip-fetched", help="Skip images of an earlier fetch, even if the files were moved")
    ] = False,
    image_format: Annotated[
        str | None, typer.Option("--image-format", metavar="FORMAT", help="Only images that are png, webp or jpeg")
    ] = None,
    drafts: Annotated[bool, typer.Option("--drafts", help="Fetch the previews of drafts too")] = False,
    force: options.Force = False,
    presign: Annotated[
        bool, typer.Option("--presign", help="Download nothing; print a URL for each finished image, one per line")
    ] = False,
    expires: Annotated[
        int, typer.Option(metavar="SECONDS", help="Validity of the URLs of --presign, 1 to 604800")
    ] = 3600,
    as_json: options.Json = False,
) -> None:
    """Download the finished images of a batch and write results.jsonl.

    A repeated fetch continues: it checks the sha256 of each present file and downloads what is missing or changed.
    Exit code 1: a job in the selected states has failed.

    With --drafts, a preview has the name that the finished image has, which a later fetch puts in its place.

    The format `files` adds the metadata.jsonl of Hugging Face's ImageFolder. In `webdataset` a sample is an image, a
    .txt and a .json, and all images have one format; __tables__/index.parquet lists all samples.

    The fields of --name-template are id, index, batch, seed, row, width, height, num_inference_steps, guidance_scale
    and scheduler; the extension is added. Duplicate names, and names that are unsafe on any system, are an error
    before the download begins.

    Example: `latentfarm fetch cats -o cats --name-template "{id}-{seed}"`
    """
    chosen = _parse_layout(layout)
    states, picks = parse_job_states(state), parse_picks(pick)
    if image_format is not None:
        options.require_choice("--image-format", image_format, list(IMAGE_FORMATS))
    if output is None and not presign:
        raise InputError("fetch: write -o DIR, or --presign to print URLs")
    found = Farm.from_env().batch(batch)
    if presign:
        with binary_stdout() as lines:
            for each in found.presigned(expires_s=expires, picks=picks):
                lines.write(f"{each.model_dump_json() if as_json else each.url}\n".encode())
        return
    fetched = fetch_into(
        found,
        output or Path(),
        layout=chosen,
        name_template=name_template,
        skip_fetched=skip_fetched,
        states=states,
        picks=picks,
        image_format=image_format,
        drafts=drafts,
        force=force,
    )
    if as_json:
        print_json(_summary(batch, fetched))
    fail_if(fetched.states["failed"])


def _parse_layout(word: str) -> Layout:
    for layout in LAYOUTS:
        if layout == word:
            return layout
    raise InputError(f"--format {word!r}: write one of {', '.join(LAYOUTS)}")


def _summary(batch: str, fetched: FetchReport) -> dict[str, Any]:
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

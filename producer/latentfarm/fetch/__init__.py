"""Download a batch's images into a folder, in parallel. An interrupted fetch is continued by the next.

Memory is bounded: a fetch holds a few hundred results and a few images at a time, however many jobs the batch has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Literal

from latentfarm.errors import InputError
from latentfarm.fetch.atomic_files import make_folder
from latentfarm.fetch.image_files import check_names, fetch_images
from latentfarm.fetch.names import DEFAULT_TEMPLATE, NameTemplate
from latentfarm.fetch.report import RESULTS_FILE, FetchReport
from latentfarm.fetch.shards import fetch_shards
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.parallel_get import parallel_reader

__all__ = ["DEFAULT_TEMPLATE", "LAYOUTS", "RESULTS_FILE", "FetchReport", "Layout", "fetch_batch"]

Layout = Literal["files", "webdataset"]
LAYOUTS: tuple[Layout, ...] = ("files", "webdataset")


def fetch_batch(
    bucket: Bucket,
    results: Callable[[], Iterable[dict[str, Any]]],
    directory: Path,
    *,
    layout: Layout = "files",
    name_template: str = DEFAULT_TEMPLATE,
    skip_fetched: bool = False,
    states: Collection[str] = (),
    progress: Callable[[FetchReport], None] = lambda _: None,
) -> FetchReport:
    """Download the image of every done job in ``results`` and write one line per job to ``results.jsonl``.

    Files are written atomically. A file whose sha256 is right is not downloaded again. If names contain the user's
    ids, all names are checked before the first download.

    Args:
        bucket: the store of the images.
        results: returns the results in index order; called twice if names have to be checked.
        directory: the folder; created if missing.
        layout: ``files``, or ``webdataset`` for tar shards.
        name_template: the template of file names; see ``NameTemplate``.
        skip_fetched: skip images that an earlier fetch into the folder has fetched, even if their files were moved.
        states: include only jobs in these states. Default: all.
        progress: called with the counts after each job.

    Raises:
        InputError: unsafe or duplicate names, options that exclude each other, or a folder that cannot be written to.
        UnavailableError: the store does not answer, or an object does not match its receipt.
    """
    if layout == "webdataset" and name_template != DEFAULT_TEMPLATE:
        raise InputError("a webdataset names its samples by index; leave out --name-template")
    template = NameTemplate(name_template)

    def selected() -> Iterable[dict[str, Any]]:
        return (result for result in results() if not states or result["state"] in states)

    if not template.always_unique:
        check_names(selected(), template)
    make_folder(directory)
    with parallel_reader(bucket) as read:
        if layout == "webdataset":
            return fetch_shards(read, selected(), directory, skip_fetched=skip_fetched, progress=progress)
        return fetch_images(read, selected(), directory, template, skip_fetched=skip_fetched, progress=progress)

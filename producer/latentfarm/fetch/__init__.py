"""Downloading a batch's pictures into a folder, in parallel, resuming where an earlier fetch stopped.

Whatever the number of jobs, a fetch holds a few hundred results and a few pictures at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Literal

from latentfarm.errors import InputError
from latentfarm.fetch.atomic_files import make_folder
from latentfarm.fetch.image_files import check_names, fetch_pictures
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
    only_new: bool = False,
    states: Collection[str] = (),
    progress: Callable[[FetchReport], None] = lambda _: None,
) -> FetchReport:
    """Download the picture of every finished job among ``results`` and write a line a job to ``results.jsonl``.

    A file is complete or absent, never half written; one whose sha256 is right already is not downloaded again.
    Names that the user's own ids go into are all looked at before anything is downloaded.

    Args:
        bucket: where the pictures lie.
        results: gives the results in index order, each time anew.
        directory: the folder; made if it is not there.
        layout: ``files``, or ``webdataset``: tar shards.
        name_template: how the files are called; see ``NameTemplate``.
        only_new: pass over what an earlier fetch into the folder has fetched, even if the file is gone by now.
        states: words of the states whose jobs appear; all if empty.
        progress: called after each job with the counts so far.

    Raises:
        InputError: names that are not safe or not unique, options that exclude each other, a folder that cannot be
            written to.
        UnavailableError: the store does not answer, or an object is not what its receipt says.
    """
    if layout == "webdataset" and name_template != DEFAULT_TEMPLATE:
        raise InputError("a webdataset's samples are named by index; leave out --name-template")
    template = NameTemplate(name_template)

    def chosen() -> Iterable[dict[str, Any]]:
        return (result for result in results() if not states or result["state"] in states)

    if not template.numbered:
        check_names(chosen(), template)
    make_folder(directory)
    with parallel_reader(bucket) as read:
        if layout == "webdataset":
            return fetch_shards(read, chosen(), directory, only_new=only_new, progress=progress)
        return fetch_pictures(read, chosen(), directory, template, only_new=only_new, progress=progress)

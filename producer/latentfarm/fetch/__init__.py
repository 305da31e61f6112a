"""Download a batch's images into a folder, in parallel. An interrupted fetch is continued by the next.

Memory is bounded: a fetch holds a few hundred results and a few images at a time, however many jobs the batch has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentfarm.errors import InputError
from latentfarm.fetch.image_files import check_names, fetch_images
from latentfarm.fetch.names import DEFAULT_TEMPLATE, NameTemplate
from latentfarm.fetch.options import LAYOUTS, FetchOptions, Layout
from latentfarm.fetch.output_folder import OutputFolder, Owner
from latentfarm.fetch.report import RESULTS_FILE, FetchReport
from latentfarm.fetch.shards import common_format, fetch_shards
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.parallel_get import parallel_reader

__all__ = [
    "DEFAULT_TEMPLATE",
    "LAYOUTS",
    "RESULTS_FILE",
    "FetchOptions",
    "FetchReport",
    "Layout",
    "OutputFolder",
    "Owner",
    "fetch_batch",
]


def fetch_batch(
    bucket: Bucket,
    results: Callable[[], Iterable[dict[str, Any]]],
    directory: Path,
    owner: Owner,
    *,
    options: FetchOptions | None = None,
    progress: Callable[[FetchReport], None] = lambda _: None,
) -> FetchReport:
    """Download the image of every done job in ``results`` and write one line per job to ``results.jsonl``.

    With ``options.drafts``, previews are downloaded as images are. Files are written atomically. A file whose sha256 is
    right is not downloaded again. If names contain the user's ids, all names are checked before the first download; for
    a webdataset, all formats are.

    Args:
        bucket: the store of the images.
        results: returns the results in index order; called twice if names or formats have to be checked.
        directory: the folder; created if missing.
        owner: the batch of the results.
        options: what is fetched, and how it is stored.
        progress: called with the counts after each job.

    Raises:
        InputError: unsafe or duplicate names, several formats for a webdataset, options that exclude each other, or a
            folder that cannot be written to or belongs to others.
        UnavailableError: the store does not answer, or an object does not match its receipt.
    """
    options = options or FetchOptions()
    if options.layout == "webdataset" and options.name_template != DEFAULT_TEMPLATE:
        raise InputError("a webdataset names its samples by index; leave out --name-template")
    if options.layout == "webdataset" and options.drafts:
        raise InputError("a webdataset has no previews of drafts; leave out --drafts, or use --format files")
    template = NameTemplate(options.name_template)

    def selected() -> Iterable[dict[str, Any]]:
        return filter(options.includes, results())

    if options.layout == "webdataset":
        owner = replace(owner, webdataset=common_format(selected()))
    folder = OutputFolder(directory, owner, options)
    if options.layout != "webdataset" and not template.always_unique:
        check_names(selected(), template, folder.require_free, options)
    folder.claim()
    with parallel_reader(bucket) as read:
        if options.layout == "webdataset":
            return fetch_shards(read, selected(), directory, skip_fetched=options.skip_fetched, progress=progress)
        return fetch_images(read, selected(), directory, template, options=options, progress=progress)

"""``--format webdataset``: tar shards of 1,000 jobs, and a Parquet index of all samples.

A shard has the done jobs of one part. A sample is ``00017042.json``, its image (``.png``, ``.webp`` or ``.jpg``) and
``.txt`` (its prompt). A shard's bytes depend on its images and their JSON only.

Hugging Face's ``datasets`` takes the fields of all samples, and their types, from the first five. So every JSON has the
same keys and types, and all images have one format. Strips of intermediate images, which only some jobs may have, are
in shards of their own.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from latentfarm.errors import InputError
from latentfarm.fetch.atomic_files import atomic_write, make_folder
from latentfarm.fetch.report import FetchReport
from latentfarm.fetch.serialize import (
    DECISION_COLUMNS,
    IMAGE_COLUMNS,
    decision_entry,
    flatten_result,
    image_entry,
    to_json,
)
from latentfarm.fetch.state_file import FetchState
from latentfarm.fetch.tables import ParquetTable, require_parquet
from latentfarm.image_formats import extension_for
from latentfarm.parallel import ordered_parallel_map
from latentfarm.storage.keys import part_of
from latentfarm.storage.parallel_get import ParallelReader

#: `datasets` ignores folders whose names begin with two underscores: of a folder with one shard and one table, it would
#: load the table
TABLES_FOLDER = "__tables__"
STRIPS_FOLDER = "__intermediates__"
INDEX_FILE = "index.parquet"
#: images per task: downloaded images are held until their turn in the tar, two tasks per thread
_GROUP = 2
#: ``key`` is that of the sample
_INDEX_COLUMNS = {
    "key": "string",
    "shard": "string",
    **{name: kind for name, kind in IMAGE_COLUMNS.items() if name != "key"},
    **DECISION_COLUMNS,
}

#: a file of a sample: its name, and its body or the receipt of the object that is downloaded
_Member = tuple[str, bytes | dict[str, Any]]


def common_format(results: Iterable[dict[str, Any]]) -> str:
    """Return the extension of all images, without its dot; empty if there is none.

    Raises:
        InputError: two images have different ones. The text names them.
    """
    first, common = "", ""
    for result in results:
        if result["state"] != "done":
            continue
        extension = extension_for(result["key"]).removeprefix(".")
        if common not in {"", extension}:
            raise InputError(
                f"jobs {first} ({common}) and {result['job']} ({extension}) have images of different formats, and a "
                "webdataset has one; fetch each format into a folder of its own with --image-format"
            )
        first, common = first or result["job"], extension
    return common


def fetch_shards(
    read: ParallelReader,
    results: Iterable[dict[str, Any]],
    directory: Path,
    *,
    skip_fetched: bool,
    progress: Callable[[FetchReport], None],
) -> FetchReport:
    """Store the done jobs of every part as one tar, then ``results.jsonl`` and ``index.parquet``.

    Shards are written atomically. A shard that already has the right content stays. If more jobs of its part are done
    by now, it is written again.

    Raises:
        InputError: pyarrow is missing, or the disk cannot be written to.
    """
    require_parquet("--format webdataset writes index.parquet")
    tables = directory / TABLES_FOLDER
    make_folder(tables)
    report = FetchReport(directory, tables=tables)
    with (
        FetchState(directory / ".fetched-webdataset") as state,
        atomic_write(report.results) as lines,
        atomic_write(tables / INDEX_FILE) as index,
        ParquetTable(index, _INDEX_COLUMNS) as table,
    ):
        for part, group in groupby(results, key=lambda result: part_of(result["index"])):
            shard, jobs = f"shard-{part:05d}.tar", list(group)
            done = [job for job in jobs if job["state"] == "done"]
            if skip_fetched and all(state.has(each["index"], each["sha256"]) for each in done):
                report.skipped += len(done)
            else:
                _store_shard(read, directory / shard, [_sample(job, job) for job in done], report, progress)
                strips = [_sample(job, job["intermediates"]) for job in done if "intermediates" in job]
                _store_shard(read, directory / STRIPS_FOLDER / shard, strips, report, progress)
            for job in jobs:
                lines.write(f"{to_json(_result_line(job, shard))}\n".encode())
                report.states[job["state"]] += 1
            for job in done:
                table.add({**image_entry(job), **decision_entry(job), "key": _key(job), "shard": shard})
                state.add(job["index"], job["sha256"])
            progress(report)
    return report


def _key(result: dict[str, Any]) -> str:
    return f"{result['index']:08d}"


def _sample(result: dict[str, Any], receipt: dict[str, Any]) -> list[_Member]:
    """Return the files of a done job with the image of ``receipt``, in the order of the shard."""
    key, entry = _key(result), image_entry(result)
    prompt: str = entry["prompt"]
    image = key + extension_for(receipt["key"])
    return [(f"{key}.json", to_json(entry).encode()), (image, receipt), (f"{key}.txt", prompt.encode())]


def _result_line(result: dict[str, Any], shard: str) -> dict[str, Any]:
    done = result["state"] == "done"
    file = _key(result) + extension_for(result["key"]) if done else None
    line = flatten_result(result) | {"shard": shard if done else None, "file": file}
    return {**line, "intermediates": f"{STRIPS_FOLDER}/{shard}"} if "intermediates" in line else line


def _store_shard(
    read: ParallelReader,
    file: Path,
    samples: list[list[_Member]],
    report: FetchReport,
    progress: Callable[[FetchReport], None],
) -> None:
    """Write a shard and count it, unless it has no samples or is complete."""
    if _is_complete(file, samples):
        report.present += 1
    elif samples:
        make_folder(file.parent)
        with closing(_write_shard(read, file, samples)) as sizes:
            for size_bytes in sizes:
                report.size_bytes += size_bytes
                progress(report)
        report.downloaded += 1


def _write_shard(read: ParallelReader, file: Path, samples: list[list[_Member]]) -> Generator[int, None, None]:
    """Write a shard. Yield each sample's downloaded bytes."""

    def download(sample: list[_Member]) -> list[bytes]:
        return [body if isinstance(body, bytes) else read(body["key"], body["sha256"]) for _, body in sample]

    with (
        atomic_write(file) as opened,
        _open_tar(opened) as tar,
        closing(ordered_parallel_map(samples, download, threads=read.threads, group=_GROUP)) as downloads,
    ):
        for sample, bodies in downloads:
            for (name, _), body in zip(sample, bodies, strict=True):
                _append(tar, name, body)
            yield sum(len(body) for (_, source), body in zip(sample, bodies, strict=True) if source is not body)


@contextmanager
def _open_tar(opened: IO[bytes]) -> Iterator[tarfile.TarFile]:
    # USTAR: every reader knows it, and our names are short enough
    with tarfile.open(fileobj=opened, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        yield tar


def _append(tar: tarfile.TarFile, name: str, body: bytes) -> None:
    # a new TarInfo has time 0, user and group 0 without names, and mode 0644: the bytes depend on the content only
    member = tarfile.TarInfo(name)
    member.size = len(body)
    tar.addfile(member, io.BytesIO(body))


def _is_complete(file: Path, samples: list[list[_Member]]) -> bool:
    """Return whether a shard has exactly these samples: the same members in order, with the same lines and sha256s."""
    expected = (member for sample in samples for member in sample)
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                name, body = next(expected, (None, None))
                if member.name != name:
                    return False
                opened = tar.extractfile(member) if isinstance(body, bytes) else None
                if opened is not None and opened.read() != body:
                    return False
        return next(expected, None) is None
    except (OSError, tarfile.TarError):
        return False

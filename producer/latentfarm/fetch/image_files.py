"""``--format files``: one file per image, ``results.jsonl``, and ``metadata.jsonl`` for Hugging Face's ImageFolder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any

from latentfarm.fetch.atomic_files import atomic_write, atomic_write_bytes
from latentfarm.fetch.names import NameTemplate, add_file_name
from latentfarm.fetch.options import FetchOptions
from latentfarm.fetch.report import RESULTS_FILE, FetchReport
from latentfarm.fetch.serialize import flatten_result, metadata_entry, to_json
from latentfarm.fetch.state_file import FetchState
from latentfarm.image_formats import extension_for, stem
from latentfarm.parallel import ordered_parallel_map
from latentfarm.storage.parallel_get import ParallelReader
from latentfarm.unique_names import UniqueNames

#: ImageFolder makes one example of each line, whose ``file_name`` is relative to this file, and ignores images that no
#: line names, such as strips and a contact sheet (checked with datasets 3.6 and 5.2; 3.2 refuses them).
#: It takes a file name with train, test, validation, dev or eval as a word for that of a split. In that case use
#: ``load_dataset("imagefolder", data_files="out/**")`` instead of ``data_dir="out"``.
METADATA_FILE = "metadata.jsonl"
#: folder of the strips of intermediate images, which have the names of their images
INTERMEDIATES_FOLDER = "intermediates"
#: images per task: passing one task to a thread costs a tenth of a download
_GROUP = 8


@dataclass(frozen=True)
class _Task:
    """One job; ``name`` is the file name of its image, None without one."""

    result: dict[str, Any]
    name: str | None
    skipped: bool = False


@dataclass(frozen=True)
class _Counts:
    downloaded: int = 0
    present: int = 0
    size_bytes: int = 0


def check_names(
    results: Iterable[dict[str, Any]],
    template: NameTemplate,
    require_free: Callable[[str], None],
    options: FetchOptions,
) -> None:
    """Check the file name of every job that has a file.

    Raises:
        InputError: a name is unsafe, two jobs have the same, or ``require_free`` raises it.
    """
    with UniqueNames() as names:
        for result in results:
            if options.has_file(result):
                name = template.name(result)
                add_file_name(names, name, result["job"])
                require_free(name)


def fetch_images(
    read: ParallelReader,
    results: Iterable[dict[str, Any]],
    directory: Path,
    template: NameTemplate,
    *,
    options: FetchOptions,
    progress: Callable[[FetchReport], None],
) -> FetchReport:
    """Store the image of every job that has a file, then ``results.jsonl`` and ``metadata.jsonl``."""
    report = FetchReport(directory)
    with (
        FetchState(directory / ".fetched-files") as state,
        UniqueNames() as names,
        atomic_write(directory / RESULTS_FILE) as lines,
        atomic_write(directory / METADATA_FILE) as metadata,
        closing(
            ordered_parallel_map(
                _tasks(results, template, names, state, options),
                _downloader(read, directory),
                threads=read.threads,
                group=_GROUP,
            )
        ) as finished,
    ):
        for task, counts in finished:
            result, name = task.result, task.name
            _write_line(lines, _result_line(task))
            if name is not None:
                state.add(result["index"], result["sha256"])
                # a skipped image may have been moved; ImageFolder fails at a line without its file
                if not task.skipped or (directory / name).is_file():
                    _write_line(metadata, metadata_entry(result, name))
                    report.add_image(directory / name, result)
            report.downloaded += counts.downloaded
            report.present += counts.present
            report.size_bytes += counts.size_bytes
            report.skipped += task.skipped
            report.states[result["state"]] += 1
            progress(report)
    return report


def _tasks(
    results: Iterable[dict[str, Any]],
    template: NameTemplate,
    names: UniqueNames,
    state: FetchState,
    options: FetchOptions,
) -> Iterator[_Task]:
    for result in results:
        if not options.has_file(result):
            yield _Task(result, None)
            continue
        name = template.name(result)
        if not template.always_unique:
            # checked before, but more jobs may be done by now
            add_file_name(names, name, result["job"])
        skipped = options.skip_fetched and state.has(result["index"], result["sha256"])
        yield _Task(result, name, skipped=skipped)


def _downloader(read: ParallelReader, directory: Path) -> Callable[[_Task], _Counts]:
    # the kernel creates one file at a time in a folder, and threads that wait for it burn CPU that downloads need
    write_lock = Lock()
    folder, strips = f"{directory}{os.sep}", f"{directory / INTERMEDIATES_FOLDER}{os.sep}"

    def download(task: _Task) -> _Counts:
        if task.name is None or task.skipped:
            return _Counts()
        files = [(task.result, folder + task.name)]
        if "intermediates" in task.result:
            os.makedirs(strips, exist_ok=True)  # noqa: PTH103
            files.append((task.result["intermediates"], strips + _strip_name(task.result, task.name)))
        sizes = [_download_file(read, write_lock, receipt, file) for receipt, file in files]
        downloaded = [size for size in sizes if size is not None]
        return _Counts(len(downloaded), len(sizes) - len(downloaded), sum(downloaded))

    return download


def _download_file(read: ParallelReader, write_lock: Lock, receipt: dict[str, Any], file: str) -> int | None:
    """Return the bytes that were downloaded, None if the file was there with the right sha256."""
    try:
        with open(file, "rb") as present:  # noqa: PTH123
            if hashlib.sha256(present.read()).hexdigest() == receipt["sha256"]:
                return None
    except OSError:
        pass
    body = read(receipt["key"], receipt["sha256"])
    with write_lock:
        atomic_write_bytes(file, body)
    return len(body)


def _strip_name(result: dict[str, Any], name: str) -> str:
    return stem(name) + extension_for(result["intermediates"]["key"])


def _result_line(task: _Task) -> dict[str, Any]:
    line = {**flatten_result(task.result), "file": task.name}
    if "intermediates" in line and task.name is not None:
        line["intermediates"] = f"{INTERMEDIATES_FOLDER}/{_strip_name(task.result, task.name)}"
    return line


def _write_line(opened: IO[bytes], line: dict[str, Any]) -> None:
    opened.write(f"{to_json(line)}\n".encode())

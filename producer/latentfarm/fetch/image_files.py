"""``--format files``: a file a picture, ``results.jsonl`` and the ``metadata.jsonl`` of Hugging Face's ImageFolder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any

from latentfarm.fetch.atomic_files import whole_file, write_whole
from latentfarm.fetch.names import NameTemplate, UniqueNames
from latentfarm.fetch.report import RESULTS_FILE, FetchReport
from latentfarm.fetch.serialize import flat_line, metadata_line, to_json
from latentfarm.fetch.state_file import FetchState
from latentfarm.image_formats import extension_for, stem
from latentfarm.parallel import ordered_parallel_map
from latentfarm.storage.parallel_get import ParallelReader

#: ImageFolder makes one example of each line of this file, whose ``file_name`` is relative to it, and leaves out
#: pictures that no line names: the strips, a contact sheet (checked with datasets 3.6 and 5.2; 3.2 refuses them).
#: A file name with train, test, validation, dev or eval as a word of its own is taken for a split's, and then
#: ``load_dataset("imagefolder", data_files="out/**")`` is the call, instead of ``data_dir="out"``.
METADATA_FILE = "metadata.jsonl"
#: strips from noise to result, under the names of their pictures
INTERMEDIATES_FOLDER = "intermediates"
#: pictures to a task: handing one over costs a tenth of a download
_GROUP = 8


@dataclass(frozen=True)
class _Wanted:
    """One job and the file name of its picture; none if there is none to fetch."""

    result: dict[str, Any]
    name: str | None
    skipped: bool = False


@dataclass(frozen=True)
class _Stored:
    downloaded: int = 0
    present: int = 0
    size_bytes: int = 0


def check_names(results: Iterable[dict[str, Any]], template: NameTemplate) -> None:
    """Look at the name of every finished picture.

    Raises:
        InputError: one would not be safe, or two jobs would have the same.
    """
    with UniqueNames() as names:
        for result in results:
            if result["state"] == "done":
                names.add(template.name(result), result["job"])


def fetch_pictures(
    read: ParallelReader,
    results: Iterable[dict[str, Any]],
    directory: Path,
    template: NameTemplate,
    *,
    only_new: bool,
    progress: Callable[[FetchReport], None],
) -> FetchReport:
    """Store every finished picture, then ``results.jsonl`` and ``metadata.jsonl``."""
    fetched = FetchReport(directory)
    with (
        FetchState(directory / ".fetched-files") as record,
        UniqueNames() as names,
        whole_file(directory / RESULTS_FILE) as lines,
        whole_file(directory / METADATA_FILE) as metadata,
        closing(
            ordered_parallel_map(
                _wanted(results, template, names, record if only_new else None),
                _storing(read, directory),
                threads=read.threads,
                group=_GROUP,
            )
        ) as done,
    ):
        for wanted, stored in done:
            result, name = wanted.result, wanted.name
            _write(lines, _line(wanted))
            if name is not None:
                record.add(result["index"], result["sha256"])
                # with --only-new a picture may have been moved away; a line without its file stops ImageFolder
                if not wanted.skipped or (directory / name).is_file():
                    _write(metadata, metadata_line(result, name))
                    fetched.show(directory / name, result)
            fetched.downloaded += stored.downloaded
            fetched.present += stored.present
            fetched.size_bytes += stored.size_bytes
            fetched.skipped += wanted.skipped
            fetched.states[result["state"]] += 1
            progress(fetched)
    return fetched


def _wanted(
    results: Iterable[dict[str, Any]], template: NameTemplate, names: UniqueNames, record: FetchState | None
) -> Iterator[_Wanted]:
    for result in results:
        if result["state"] != "done":
            yield _Wanted(result, None)
            continue
        name = template.name(result)
        if not template.numbered:
            names.add(name, result["job"])
        yield _Wanted(result, name, record is not None and record.has(result["index"], result["sha256"]))


def _storing(read: ParallelReader, directory: Path) -> Callable[[_Wanted], _Stored]:
    # a folder takes one new file at a time, and those who wait for their turn there burn the CPU that reading needs
    writing = Lock()
    folder, traces = f"{directory}{os.sep}", f"{directory / INTERMEDIATES_FOLDER}{os.sep}"

    def store(wanted: _Wanted) -> _Stored:
        if wanted.name is None or wanted.skipped:
            return _Stored()
        objects = [(wanted.result, folder + wanted.name)]
        if "intermediates" in wanted.result:
            os.makedirs(traces, exist_ok=True)  # noqa: PTH103
            objects.append((wanted.result["intermediates"], traces + _intermediates_name(wanted.result, wanted.name)))
        sizes = [_store_one(read, writing, receipt, file) for receipt, file in objects]
        fresh = [size for size in sizes if size is not None]
        return _Stored(len(fresh), len(sizes) - len(fresh), sum(fresh))

    return store


def _store_one(read: ParallelReader, writing: Lock, receipt: dict[str, Any], file: str) -> int | None:
    """Return the bytes that were downloaded, or None where the file is there with the right sha256."""
    try:
        with open(file, "rb") as present:  # noqa: PTH123
            if hashlib.sha256(present.read()).hexdigest() == receipt["sha256"]:
                return None
    except OSError:
        pass
    body = read(receipt["key"], receipt["sha256"])
    with writing:
        write_whole(file, body)
    return len(body)


def _intermediates_name(result: dict[str, Any], name: str) -> str:
    return stem(name) + extension_for(result["intermediates"]["key"])


def _line(wanted: _Wanted) -> dict[str, Any]:
    line = {**flat_line(wanted.result), "file": wanted.name}
    if "intermediates" in line and wanted.name is not None:
        line["intermediates"] = f"{INTERMEDIATES_FOLDER}/{_intermediates_name(wanted.result, wanted.name)}"
    return line


def _write(lines: IO[bytes], line: dict[str, Any]) -> None:
    lines.write(f"{to_json(line)}\n".encode())

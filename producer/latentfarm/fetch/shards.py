"""``--format webdataset``: tar shards of 1,000 jobs, and a Parquet index of all samples.

A shard has the done jobs of one part. A sample is ``00017042.json`` (its line of ``results.jsonl``), its image
(``.png``, ``.webp`` or ``.jpg``), ``.txt`` (its prompt) and, with ``save_intermediates``, ``.intermediates.png``.
A shard's bytes depend on its images and lines only.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from latentfarm.fetch.atomic_files import atomic_write
from latentfarm.fetch.report import RESULTS_FILE, FetchReport
from latentfarm.fetch.serialize import flatten_result, to_json
from latentfarm.fetch.state_file import FetchState
from latentfarm.fetch.tables import ParquetTable, require_parquet
from latentfarm.image_formats import extension_for
from latentfarm.parallel import ordered_parallel_map
from latentfarm.storage.keys import part_of
from latentfarm.storage.parallel_get import ParallelReader

INDEX_FILE = "index.parquet"
#: images per task: downloaded images are held until their turn in the tar, two tasks per thread
_GROUP = 2
_INDEX_COLUMNS = {
    "key": "string",
    "shard": "string",
    "job": "string",
    "id": "string",
    "prompt": "string",
    "negative_prompt": "string",
    "seed": "int64",
    "width": "int64",
    "height": "int64",
    "num_inference_steps": "int64",
    "guidance_scale": "float64",
    "scheduler": "string",
    "sha256": "string",
    "bytes": "int64",
}

#: a file in a shard: its name, and its body unless that is downloaded
_Member = tuple[str, bytes | None]


@dataclass(frozen=True)
class _Sample:
    """A done job: its result, and its line of ``results.jsonl``."""

    result: dict[str, Any]
    line: dict[str, Any]

    def receipts(self) -> list[dict[str, Any]]:
        """Return the receipts of the objects to download, in the order of their members."""
        return [self.result, *([self.result["intermediates"]] if "intermediates" in self.result else [])]

    def members(self) -> list[_Member]:
        """Return the sample's files, in the order of the shard."""
        key, prompt = _key(self.result), self.result.get("request", {}).get("prompt", "")
        strip: list[_Member] = [(_strip_file(self.result), None)] if "intermediates" in self.result else []
        line = to_json(self.line).encode()
        return [(f"{key}.json", line), (_image_file(self.result), None), *strip, (f"{key}.txt", prompt.encode())]


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
    report = FetchReport(directory)
    with (
        FetchState(directory / ".fetched-webdataset") as state,
        atomic_write(directory / RESULTS_FILE) as lines,
        atomic_write(directory / INDEX_FILE) as index,
        ParquetTable(index, _INDEX_COLUMNS) as table,
    ):
        for part, group in groupby(results, key=lambda result: part_of(result["index"])):
            shard = f"shard-{part:05d}.tar"
            jobs = [_Sample(result, _result_line(result, shard)) for result in group]
            samples = [job for job in jobs if job.result["state"] == "done"]
            if skip_fetched and all(state.has(each.result["index"], each.result["sha256"]) for each in samples):
                report.skipped += len(samples)
            elif _is_complete(directory / shard, samples):
                report.present += 1
            elif samples:
                with closing(_write_shard(read, directory / shard, samples)) as sizes:
                    for size_bytes in sizes:
                        report.size_bytes += size_bytes
                        progress(report)
                report.downloaded += 1
            for job in jobs:
                lines.write(f"{to_json(job.line)}\n".encode())
                report.states[job.result["state"]] += 1
            for sample in samples:
                table.add({**sample.line, "key": _key(sample.result)})
                state.add(sample.result["index"], sample.result["sha256"])
            progress(report)
    return report


def _key(result: dict[str, Any]) -> str:
    return f"{result['index']:08d}"


def _image_file(result: dict[str, Any]) -> str:
    return _key(result) + extension_for(result["key"])


def _strip_file(result: dict[str, Any]) -> str:
    return f"{_key(result)}.intermediates{extension_for(result['intermediates']['key'])}"


def _result_line(result: dict[str, Any], shard: str) -> dict[str, Any]:
    line, done = flatten_result(result), result["state"] == "done"
    line |= {"shard": shard if done else None, "file": _image_file(result) if done else None}
    return {**line, "intermediates": _strip_file(result)} if "intermediates" in line else line


def _write_shard(read: ParallelReader, file: Path, samples: list[_Sample]) -> Generator[int, None, None]:
    """Write a shard. Yield each sample's downloaded bytes."""

    def download(sample: _Sample) -> list[bytes]:
        return [read(receipt["key"], receipt["sha256"]) for receipt in sample.receipts()]

    with (
        atomic_write(file) as opened,
        _open_tar(opened) as tar,
        closing(ordered_parallel_map(samples, download, threads=read.threads, group=_GROUP)) as downloads,
    ):
        for sample, bodies in downloads:
            downloaded = iter(bodies)
            for name, body in sample.members():
                _append(tar, name, next(downloaded) if body is None else body)
            yield sum(map(len, bodies))


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


def _is_complete(file: Path, samples: list[_Sample]) -> bool:
    """Return whether a shard has exactly these samples: the same members in order, with the same lines and sha256s."""
    expected = (member for sample in samples for member in sample.members())
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                name, body = next(expected, (None, None))
                if member.name != name:
                    return False
                opened = tar.extractfile(member) if body is not None else None
                if opened is not None and opened.read() != body:
                    return False
        return next(expected, None) is None
    except (OSError, tarfile.TarError):
        return False

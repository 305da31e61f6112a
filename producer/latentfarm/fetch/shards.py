"""``--format webdataset``: tar shards of a thousand jobs, and a Parquet index of all samples.

A shard holds the finished pictures of one part; each sample is ``00017042.json`` (its line of ``results.jsonl``),
``.png`` (or ``.webp`` or ``.jpg``), ``.txt`` (its prompt) and, where there is one, ``.trace.png``. The same pictures
give the same bytes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from latentfarm.fetch.atomic_files import whole_file
from latentfarm.fetch.report import RESULTS_FILE, FetchReport
from latentfarm.fetch.serialize import flat_line, to_json
from latentfarm.fetch.state_file import FetchState
from latentfarm.fetch.tables import ParquetTable, require_parquet
from latentfarm.image_formats import extension_for
from latentfarm.parallel import ordered_parallel_map
from latentfarm.storage.keys import part_of
from latentfarm.storage.parallel_get import ParallelReader

INDEX_FILE = "index.parquet"
#: pictures to a task: whole ones are held until their turn in the tar, two tasks a thread
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

#: what a sample is made of: the members' names and, of those that are not downloaded, their bodies
Member = tuple[str, bytes | None]


def fetch_shards(
    read: ParallelReader,
    results: Iterable[dict[str, Any]],
    directory: Path,
    *,
    only_new: bool,
    progress: Callable[[FetchReport], None],
) -> FetchReport:
    """Store the finished pictures of every part as one tar, then ``results.jsonl`` and ``index.parquet``.

    A shard is whole or absent. One that holds what it should already is not made again; that of a part of which more is
    done by now is.

    Raises:
        InputError: pyarrow is missing, or the disk does not take it.
    """
    require_parquet("--format webdataset writes index.parquet")
    fetched = FetchReport(directory)
    with (
        FetchState(directory / ".fetched-webdataset") as record,
        whole_file(directory / RESULTS_FILE) as lines,
        whole_file(directory / INDEX_FILE) as index,
        ParquetTable(index, _INDEX_COLUMNS) as table,
    ):
        for part, group in groupby(results, key=lambda result: part_of(result["index"])):
            shard = f"shard-{part:05d}.tar"
            # a thousand lines; never their pictures
            found = [(result, _line(result, shard)) for result in group]
            samples = [(result, line) for result, line in found if result["state"] == "done"]
            if only_new and all(record.has(result["index"], result["sha256"]) for result, _ in samples):
                fetched.skipped += len(samples)
            elif _holds(directory / shard, samples):
                fetched.present += 1
            elif samples:
                _write_shard(read, directory / shard, samples, lambda size: _count(fetched, size, progress))
                fetched.downloaded += 1
            for result, line in found:
                lines.write(f"{to_json(line)}\n".encode())
                fetched.states[result["state"]] += 1
            for result, line in samples:
                table.add({**line, "key": _key(result)})
                record.add(result["index"], result["sha256"])
            progress(fetched)
    return fetched


def _count(fetched: FetchReport, size_bytes: int, progress: Callable[[FetchReport], None]) -> None:
    fetched.size_bytes += size_bytes
    progress(fetched)


def _key(result: dict[str, Any]) -> str:
    return f"{result['index']:08d}"


def _line(result: dict[str, Any], shard: str) -> dict[str, Any]:
    line, done = flat_line(result), result["state"] == "done"
    line |= {"shard": shard if done else None, "file": _file(result) if done else None}
    return {**line, "intermediates": _intermediates_file(result)} if "intermediates" in line else line


def _file(result: dict[str, Any]) -> str:
    return _key(result) + extension_for(result["key"])


def _intermediates_file(result: dict[str, Any]) -> str:
    return f"{_key(result)}.intermediates{extension_for(result['intermediates']['key'])}"


def _members(result: dict[str, Any], line: dict[str, Any]) -> list[Member]:
    key = _key(result)
    prompt = result.get("request", {}).get("prompt", "")
    trace: list[Member] = [(_intermediates_file(result), None)] if "intermediates" in result else []
    return [(f"{key}.json", to_json(line).encode()), (_file(result), None), *trace, (f"{key}.txt", prompt.encode())]


def _write_shard(
    read: ParallelReader, file: Path, samples: list[tuple[dict[str, Any], dict[str, Any]]], count: Callable[[int], None]
) -> None:
    def pictures(sample: tuple[dict[str, Any], dict[str, Any]]) -> list[bytes]:
        result, _ = sample
        receipts = [result, result["intermediates"]] if "intermediates" in result else [result]
        return [read(receipt["key"], receipt["sha256"]) for receipt in receipts]

    with (
        whole_file(file) as opened,
        _tar(opened) as tar,
        closing(ordered_parallel_map(samples, pictures, threads=read.threads, group=_GROUP)) as downloads,
    ):
        for sample, bodies in downloads:
            rest = iter(bodies)
            for name, body in _members(*sample):
                _append(tar, name, next(rest) if body is None else body)
            count(sum(map(len, bodies)))


@contextmanager
def _tar(opened: IO[bytes]) -> Iterator[tarfile.TarFile]:
    # USTAR: the plainest, read by all; our names are short
    with tarfile.open(fileobj=opened, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        yield tar


def _append(tar: tarfile.TarFile, name: str, body: bytes) -> None:
    # a new TarInfo has time 0, user and group 0 without names and mode 0644: the bytes depend on the content only
    member = tarfile.TarInfo(name)
    member.size = len(body)
    tar.addfile(member, io.BytesIO(body))


def _holds(file: Path, samples: list[tuple[dict[str, Any], dict[str, Any]]]) -> bool:
    """Return whether a shard is there with just these samples: same members in order, same lines (sha256 and all)."""
    wanted = (member for sample in samples for member in _members(*sample))
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                name, body = next(wanted, (None, None))
                if member.name != name:
                    return False
                opened = tar.extractfile(member) if body is not None else None
                if opened is not None and opened.read() != body:
                    return False
        return next(wanted, None) is None
    except (OSError, tarfile.TarError):
        return False

"""Downloading a batch's pictures into a folder, in parallel, resuming where an earlier fetch stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentfarm.bucket import Bucket
from latentfarm.errors import UnavailableError

_THREADS = 8
RESULTS_FILE = "results.jsonl"


@dataclass(frozen=True)
class Fetched:
    """What a fetch did: ``lines`` are those of ``results.jsonl``."""

    directory: Path
    downloaded: int
    present: int
    lines: list[dict[str, Any]]


def file_name(index: int) -> str:
    """Return the name of a job's file: the index in at least six digits, so that a listing is in order."""
    return f"{index:06d}.png"


def trace_name(index: int) -> str:
    """Return the name of the file of a job's strip from noise to result."""
    return f"{index:06d}-trace.png"


def fetch_batch(
    bucket: Bucket,
    results: Iterable[dict[str, Any]],
    directory: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Fetched:
    """Download the image of every done job among ``results`` and write a line a job to ``results.jsonl``.

    A file is complete or absent, never half written; one whose sha256 is right already is not downloaded again.

    Raises:
        UnavailableError: the store does not answer, or an object is not what its receipt says.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = list(results)
    done = [line for line in found if line["state"] == "done"]
    files = [(line, file_name(line["index"])) for line in done]
    files += [(line["trace"], trace_name(line["index"])) for line in done if "trace" in line]
    downloaded = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        fetches = pool.map(lambda wanted: _fetch_one(bucket, wanted[0], directory / wanted[1]), files)
        for count, fresh in enumerate(fetches, start=1):
            downloaded += fresh
            if progress is not None:
                progress(count, len(files))
    lines = [_line(result) for result in found]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    _write(directory / RESULTS_FILE, text.encode())
    return Fetched(directory, downloaded, len(files) - downloaded, lines)


def _fetch_one(bucket: Bucket, line: dict[str, Any], file: Path) -> bool:
    """Fetch the object that ``line`` tells the key and the sha256 of; return whether it had to be downloaded."""
    if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == line["sha256"]:
        return False
    body = bucket.get(line["key"])
    if hashlib.sha256(body).hexdigest() != line["sha256"]:
        raise UnavailableError(f"{line['key']} is not what its receipt says; its sha256 differs")
    _write(file, body)
    return True


def _write(file: Path, body: bytes) -> None:
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_bytes(body)
    fresh.replace(file)


def _line(result: dict[str, Any]) -> dict[str, Any]:
    """Return a line of ``results.jsonl``: the request in diffusers' names lies flat beside what became of it."""
    line = {
        "job": result["job"],
        "index": result["index"],
        "id": result.get("id"),
        "state": result["state"],
        "file": file_name(result["index"]) if result["state"] == "done" else None,
        "key": result.get("key"),
        "sha256": result.get("sha256"),
        **result["request"],
    }
    if "trace" in result:
        line["trace"] = trace_name(result["index"])
    return {**line, "error": result["error"]} if "error" in result else line

"""Results as the output and error lines of an OpenAI batch: one line for each row of the prompt file.

OpenAI writes two files, one of requests that have succeeded and one of those that have not. ``--state done`` selects
the first, ``--state failed,cancelled`` the second.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import groupby, islice
from typing import IO, Any

from latentfarm.fetch.serialize import to_json
from latentfarm.job_state import JobState
from latentfarm.limits import MAX_IMAGES_PER_PROMPT
from latentfarm.names import BYTES, RESPONSE_FORMAT
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.parallel_get import ParallelReader

#: returns the entry of a done job's image in ``data``
ImageEntry = Callable[[dict[str, Any]], dict[str, str]]

_DONE = JobState.DONE.word
#: states of an error line
_NOT_DONE = (JobState.FAILED.word, JobState.CANCELLED.word)
_CANCELLED = {
    "code": "batch_cancelled",
    "message": "the batch was cancelled, or the draft discarded, before this image was rendered to its end",
}


def url_entry(bucket: Bucket, *, expires_s: int) -> ImageEntry:
    """Return a function that gives an image by a URL, which is valid for ``expires_s`` seconds."""
    return lambda result: {"url": bucket.presign(result["key"], expires_s=expires_s)}


def inline_entry(read: ParallelReader) -> ImageEntry:
    """Return a function that gives an image by its bytes in base64."""
    return lambda result: {"b64_json": b64encode(read(result["key"], result["sha256"])).decode()}


def requested_entry(bucket: Bucket, read: ParallelReader, *, expires_s: int) -> ImageEntry:
    """Return a function that gives an image as its request wants it: its bytes for ``b64_json``, else a URL."""
    by_url, inline = url_entry(bucket, expires_s=expires_s), inline_entry(read)

    def entry(result: dict[str, Any]) -> dict[str, str]:
        wants_bytes = result.get("columns", {}).get(RESPONSE_FORMAT) == BYTES
        return inline(result) if wants_bytes else by_url(result)

    return entry


def write_openai(
    opened: IO[bytes],
    results: Iterable[dict[str, Any]],
    entry: ImageEntry,
    *,
    created: int,
    states: Collection[str] = (),
) -> None:
    """Write what ``openai_lines`` yields to a file."""
    for piece in openai_lines(results, entry, created=created, states=states):
        opened.write(piece)


def openai_lines(
    results: Iterable[dict[str, Any]], entry: ImageEntry, *, created: int, states: Collection[str] = ()
) -> Iterator[bytes]:
    """Yield the lines of all rows whose jobs have ended, in order, in pieces: an image may be several megabytes.

    A row with several images has one line with as many entries. If only some of its images are done, it has two lines:
    those images, and the error of the first other one. Memory is bounded: a row that a sweep has expanded into more
    than 10,000 jobs has more lines.

    Args:
        results: the results of all jobs, in index order.
        entry: see ``url_entry``, ``inline_entry`` and ``requested_entry``.
        created: when the last image was committed, in seconds since 1970.
        states: yield only the lines of jobs in these states. Empty: all.
    """
    for jobs in _rows(results):
        words = {job["state"] for job in jobs}
        if not words <= {_DONE, *_NOT_DONE}:
            continue
        done = [job for job in jobs if job["state"] == _DONE]
        errors = [job for job in jobs if job["state"] in _NOT_DONE and (not states or job["state"] in states)]
        if done and (not states or _DONE in states):
            yield from _output_line(jobs[0], done, entry, created=created)
        if errors:
            frame = {**_frame(jobs[0]), "response": None, "error": _error(errors[0])}
            yield f"{to_json(frame)}\n".encode()


def _rows(results: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for _, group in groupby(results, key=lambda result: result.get("row")):
        while jobs := list(islice(group, MAX_IMAGES_PER_PROMPT)):
            yield jobs


def _frame(first: dict[str, Any]) -> dict[str, str]:
    """Return what every line begins with. A row without an id has the name of its first job."""
    digest = hashlib.blake2b(first["job"].encode(), digest_size=16).hexdigest()
    return {"id": f"batch_req_{digest}", "custom_id": first.get("id") or first["job"]}


def _output_line(
    first: dict[str, Any], done: list[dict[str, Any]], entry: ImageEntry, *, created: int
) -> Iterator[bytes]:
    frame = _frame(first)
    request_id = frame["id"].removeprefix("batch_")
    response = {"status_code": 200, "request_id": request_id, "body": {"created": created, "data": []}}
    line = to_json({**frame, "response": response, "error": None})
    # images are yielded one by one: those of a row may not fit into memory
    head, _, tail = line.rpartition("[]")
    yield f"{head}[".encode()
    for number, job in enumerate(done):
        yield f"{', ' if number else ''}{to_json(entry(job))}".encode()
    yield f"]{tail}\n".encode()


def _error(job: dict[str, Any]) -> dict[str, str]:
    if job["state"] == JobState.CANCELLED.word:
        return _CANCELLED
    found = job.get("error") or {}
    return {"code": found.get("code", "failed"), "message": found.get("message", "")}

"""The manifest: what was asked, in parts of a thousand jobs, immutable, and the only place where prompts are stored."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from latentfarm.bucket import Bucket, MissingObjectError, header_key, manifest_key, part_of
from latentfarm.errors import InputError
from latentfarm.job import PART_JOBS, Job
from latentfarm.jsonl import pack, unpack


class Header(BaseModel):
    """``batch.json``: written after the last part, so its presence says that the manifest is whole."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    batch: str
    model: str
    total: int
    digest: str
    priority: int = 0


class Digest:
    """A running sha256 over a batch's model and jobs: the same file, options and name give the same digest."""

    def __init__(self, model: str) -> None:
        self._hash = hashlib.sha256(model.encode())
        self.total = 0

    def add(self, job: Job) -> None:
        """Take in the next job."""
        self.total += 1
        self._hash.update(json.dumps(_line(job), sort_keys=True).encode())

    def hexdigest(self) -> str:
        """Return the digest so far, 64 hex digits."""
        return self._hash.hexdigest()


def _line(job: Job) -> dict[str, object]:
    return job.model_dump(exclude={"batch"}, exclude_none=True)


def write_manifest(bucket: Bucket, header: Header, jobs: Iterable[Job]) -> Iterator[int]:
    """Write the parts, then the header; yield after each part how many jobs are stored.

    Writing the same batch again puts the same bytes under the same keys, so a killed submission is simply repeated.
    """
    stored = 0
    for part, group in enumerate(_batched(jobs, PART_JOBS)):
        body = pack(_line(job) for job in group)
        bucket.put(manifest_key(header.batch, part), body, content_type="application/gzip")
        stored += len(group)
        yield stored
    bucket.put(header_key(header.batch), header.model_dump_json(indent=2).encode(), content_type="application/json")


def _batched(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    group: list[Job] = []
    for job in jobs:
        group.append(job)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def read_header(bucket: Bucket, batch: str) -> Header | None:
    """Return what was asked, or None where no whole manifest lies in the bucket."""
    try:
        return Header.model_validate_json(bucket.get(header_key(batch)))
    except MissingObjectError:
        return None


class ManifestReader:
    """Reads jobs by index, keeping the last few parts; safe to share between threads."""

    def __init__(self, bucket: Bucket, *, parts: int = 8) -> None:
        self._bucket = bucket
        self._limit = parts
        self._parts: OrderedDict[tuple[str, int], list[dict[str, Any]]] = OrderedDict()
        self._lock = Lock()

    def job(self, batch: str, index: int) -> Job:
        """Return a job as it was asked for, checked again: the worker trusts no one's limits but its own.

        Raises:
            InputError: the manifest has no such job, or one beyond the limits.
        """
        lines = self._part(batch, part_of(index))
        if index % PART_JOBS >= len(lines):
            raise InputError(f"job {batch}/{index} is not in the manifest")
        try:
            return Job.model_validate({**lines[index % PART_JOBS], "batch": batch, "index": index})
        except ValidationError as error:
            raise InputError(f"job {batch}/{index} is not valid in the manifest: {error}") from None

    def _part(self, batch: str, part: int) -> list[dict[str, Any]]:
        key = (batch, part)
        with self._lock:
            if key in self._parts:
                self._parts.move_to_end(key)
                return self._parts[key]
        lines = unpack(self._bucket.get(manifest_key(batch, part)))
        with self._lock:
            self._parts[key] = lines
            while len(self._parts) > self._limit:
                self._parts.popitem(last=False)
        return lines

"""The manifest: what was asked, in parts of a thousand jobs, immutable, and the only place where prompts are stored.

A row of the prompt file that was wrong has its jobs' place too, with what was wrong instead of a prompt, so that every
job's index depends on the file only.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from latentfarm.errors import InputError
from latentfarm.job import DEFAULT_GUIDANCE, DEFAULT_STEPS, MAX_SEED, PART_JOBS, Defaults, Job, Row, seed_for
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import header_key, manifest_key, part_of
from latentfarm.storage.part_codec import compress, dump_line, parse, unpack_lines

#: the error code of a job whose row was wrong
INVALID_ROW = "invalid_row"
#: what a line holds beside what the picture depends on
NOT_THE_REQUEST = frozenset({"index", "row", "id", "columns", "trace", "invalid"})


class Header(BaseModel):
    """``batch.json``: what was asked, beside the jobs.

    It is written before the first part, and once more after the last with ``total``, whose presence says that the
    manifest is whole. ``digest`` tells the submission (its file and options), ``chain`` the content of its parts.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    batch: str
    model: str
    digest: str
    total: int | None = None
    chain: str = ""
    priority: int = 0
    failure_budget: float = 0.0
    canary: int = 0
    webhook: str = ""


@dataclass(frozen=True)
class Part:
    """Up to a thousand numbered jobs: ``lines`` as they will be stored, ``wrong`` the errors of wrong rows by index.

    ``chain`` is the digest of this part and all before it.
    """

    number: int
    first: int
    total: int
    lines: bytes
    chain: str
    wrong: dict[int, dict[str, str]] = field(default_factory=dict)

    def store(self, bucket: Bucket, batch: str) -> None:
        """Put the part; doing so again puts the same bytes."""
        bucket.put(manifest_key(batch, self.number), compress(self.lines), content_type="application/gzip")


class PartWriter:
    """Numbers the jobs that rows stand for and gathers them to parts; it holds one part at a time."""

    def __init__(self, batch: str, defaults: Defaults) -> None:
        self._batch = batch
        # written down in full: a manifest must not change its meaning with a later version's defaults
        own = {"negative_prompt": "", "num_inference_steps": DEFAULT_STEPS, "guidance_scale": DEFAULT_GUIDANCE}
        self._defaults = {**own, **defaults.given()}
        self._lines: list[bytes] = []
        self._wrong: dict[int, dict[str, str]] = {}
        self._chain = ""
        self._part = 0
        self.total = 0

    def add(self, row: Row, row_number: int) -> Iterator[Part]:
        """Take in a row: one job an image, seeds s, s+1, ...; yield the parts that it filled."""
        fields = {**self._defaults, **row.given()}
        images = fields.pop("num_images_per_prompt", 1)
        seed = fields.pop("seed", None)
        if seed is None:
            seed = seed_for(self._batch, self.total)
        for offset in range(images):
            line = {"index": self.total, "row": row_number, **fields, "seed": (seed + offset) % (MAX_SEED + 1)}
            if part := self._append(line):
                yield part

    def add_wrong(self, message: str, row_number: int) -> Iterator[Part]:
        """Take in a row that is wrong: one job that has failed already."""
        error = {"code": INVALID_ROW, "message": message}
        self._wrong[self.total] = error
        if part := self._append({"index": self.total, "row": row_number, "invalid": error}):
            yield part

    def rest(self) -> Iterator[Part]:
        """Yield the last part, unless it is empty."""
        if self._lines:
            yield self._close()

    @property
    def chain(self) -> str:
        """The digest of all parts so far, 64 hex digits; empty before the first."""
        return self._chain

    def _append(self, line: dict[str, Any]) -> Part | None:
        self._lines.append(dump_line(line))
        self.total += 1
        return self._close() if len(self._lines) == PART_JOBS else None

    def _close(self) -> Part:
        lines = b"".join(self._lines)
        self._chain = chain_of(self._chain, lines)
        first = self.total - len(self._lines)
        part = Part(self._part, first, self.total, lines, self._chain, self._wrong)
        self._lines, self._wrong = [], {}
        self._part += 1
        return part


def chain_of(before: str, lines: bytes) -> str:
    """Return the digest, 64 hex digits, of a part's lines and of all parts before it."""
    return hashlib.sha256(before.encode() + hashlib.sha256(lines).digest()).hexdigest()


def write_header(bucket: Bucket, header: Header) -> None:
    """Write what was asked; with a total, that the manifest is whole."""
    bucket.put(header_key(header.batch), header.model_dump_json(indent=2).encode(), content_type="application/json")


def read_header(bucket: Bucket, batch: str) -> Header | None:
    """Return what was asked, or None where the bucket has no such batch."""
    try:
        return Header.model_validate_json(bucket.get(header_key(batch)))
    except MissingObjectError:
        return None


class ManifestReader:
    """Reads jobs by index, keeping the last few parts; safe to share between threads."""

    def __init__(self, bucket: Bucket, *, parts: int = 8) -> None:
        self._bucket = bucket
        self._limit = parts
        # as bytes: a few MB of brackets would be gigabytes of objects
        self._parts: OrderedDict[tuple[str, int], list[bytes]] = OrderedDict()
        self._lock = Lock()

    def job(self, batch: str, index: int) -> Job:
        """Return a job as it was asked for, checked again: the worker trusts no one's limits but its own.

        Raises:
            InputError: the manifest has no such job, or one beyond the limits.
        """
        line = self.line(batch, index)
        try:
            return Job.model_validate({**line, "batch": batch, "index": index})
        except ValidationError as error:
            raise InputError(f"job {batch}/{index} is not valid in the manifest: {_findings(error)}") from None

    def line(self, batch: str, index: int) -> dict[str, Any]:
        """Return what is written of a job; of a wrong row's, ``invalid`` instead of a prompt.

        Raises:
            InputError: the manifest has no such job.
        """
        lines = self._part(batch, part_of(index))
        if index % PART_JOBS >= len(lines):
            raise InputError(f"job {batch}/{index} is not in the manifest")
        return parse(lines[index % PART_JOBS], name=manifest_key(batch, part_of(index)))

    def _part(self, batch: str, part: int) -> list[bytes]:
        key = (batch, part)
        with self._lock:
            if key in self._parts:
                self._parts.move_to_end(key)
                return self._parts[key]
        place = manifest_key(batch, part)
        lines = unpack_lines(self._bucket.get(place), name=place)
        with self._lock:
            self._parts[key] = lines
            while len(self._parts) > self._limit:
                self._parts.popitem(last=False)
        return lines


def _findings(error: ValidationError) -> str:
    """Say which fields are wrong and how, without their values: this goes to logs and into the ledger."""
    told = [
        f"{'.'.join(str(place)[:60] for place in finding['loc'][:2])}: {finding['msg'][:200]}"
        for finding in error.errors(include_url=False, include_context=False, include_input=False)[:8]
    ]
    return "; ".join(told)

"""The manifest of a batch: its header, and its jobs in immutable parts of 1,000. Prompts are stored only here.

An invalid row of the prompt file has the place of its one job too, with an error instead of a prompt. So every job's
index depends on the file only.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from latentfarm.batch_kind import BatchKind
from latentfarm.errors import InputError
from latentfarm.job import Defaults, Job, Row, default_seed
from latentfarm.job_state import INVALID_ROW
from latentfarm.limits import MAX_SEED, PART_JOBS
from latentfarm.model_facts import ModelFacts, model_defaults
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import header_key, manifest_key, part_of
from latentfarm.storage.part_codec import compress, dump_line, parse, unpack_lines

#: fields of an entry that the image does not depend on
NOT_THE_REQUEST = frozenset(
    {"index", "row", "id", "columns", "save_intermediates", "partial_images", "draft", "scorers", "invalid"}
)


class Header(BaseModel):
    """``batch.json``: the batch's model and options.

    It is written before the first part and again, with ``total``, after the last one: a total means that the manifest
    is whole. ``digest`` identifies the submission (file and options). ``parts_digest`` is that of the last part.
    ``model_facts`` are what workers had announced of the model when the batch was submitted, with the licence of the
    weights and the defaults of its jobs; None if none had. ``inputs``: whether jobs may have input images. ``preempt``:
    whether they take the place of running images.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    batch: str
    model: str
    digest: str
    total: int | None = None
    # latentfarm 0.1 wrote `chain`
    parts_digest: str = Field(default="", validation_alias=AliasChoices("parts_digest", "chain"))
    priority: int = 0
    failure_budget: float = 0.0
    canary: int = 0
    webhook: str = ""
    kind: BatchKind = BatchKind.SUBMITTED
    owner: str = ""
    keep_s: int = 0
    preempt: bool = False
    model_facts: ModelFacts | None = None
    inputs: bool = False


@dataclass(frozen=True)
class Part:
    """Up to 1,000 consecutive jobs, from index ``first`` up to ``total``.

    ``lines`` are its entries, uncompressed; ``invalid`` the errors of invalid rows by index; ``parts_digest`` the
    digest of this part and all before it.
    """

    number: int
    first: int
    total: int
    lines: bytes
    parts_digest: str
    invalid: dict[int, dict[str, str]] = field(default_factory=dict)

    def store(self, bucket: Bucket, batch: str) -> None:
        """Put the part. Idempotent: the bytes depend on the entries only."""
        bucket.put(manifest_key(batch, self.number), compress(self.lines), content_type="application/gzip")


class PartWriter:
    """Numbers the jobs of rows and collects them into parts. Holds one part at a time."""

    def __init__(self, batch: str, defaults: Defaults, facts: ModelFacts | None = None) -> None:
        self._batch = batch
        # stored explicitly: another version's defaults must not change a stored manifest's meaning
        self._defaults = {"negative_prompt": "", **model_defaults(facts), **defaults.given()}
        self._lines: list[bytes] = []
        self._invalid: dict[int, dict[str, str]] = {}
        self._part = 0
        self.total = 0
        #: digest of all parts so far, 64 hex digits; empty before the first
        self.parts_digest = ""

    def add(self, row: Row, row_number: int) -> Iterator[Part]:
        """Add a row: one job per image, with seeds s, s+1, .... Yield each part that becomes full."""
        fields = {**self._defaults, **row.given()}
        images = fields.pop("num_images_per_prompt", 1)
        seed = fields.pop("seed", None)
        if seed is None:
            seed = default_seed(self._batch, self.total)
        for offset in range(images):
            entry = {"index": self.total, "row": row_number, **fields, "seed": (seed + offset) % (MAX_SEED + 1)}
            if part := self._append(entry):
                yield part

    def add_invalid(self, message: str, row_number: int, row_id: str | None = None) -> Iterator[Part]:
        """Add an invalid row: one job that has already failed. Yield the part if it becomes full."""
        error = {"code": INVALID_ROW, "message": message}
        self._invalid[self.total] = error
        own_id = {} if row_id is None else {"id": row_id}
        if part := self._append({"index": self.total, "row": row_number, **own_id, "invalid": error}):
            yield part

    def flush(self) -> Iterator[Part]:
        """Yield the last part, unless it is empty."""
        if self._lines:
            yield self._close()

    def _append(self, entry: dict[str, Any]) -> Part | None:
        self._lines.append(dump_line(entry))
        self.total += 1
        return self._close() if len(self._lines) == PART_JOBS else None

    def _close(self) -> Part:
        lines = b"".join(self._lines)
        self.parts_digest = digest_parts(self.parts_digest, lines)
        first = self.total - len(self._lines)
        part = Part(self._part, first, self.total, lines, self.parts_digest, self._invalid)
        self._lines, self._invalid = [], {}
        self._part += 1
        return part


def digest_parts(before: str, lines: bytes) -> str:
    """Return the digest, 64 hex digits, of a part's lines and the digest ``before`` it."""
    return hashlib.sha256(before.encode() + hashlib.sha256(lines).digest()).hexdigest()


def write_header(bucket: Bucket, header: Header) -> None:
    """Write a batch's header."""
    bucket.put(header_key(header.batch), header.model_dump_json(indent=2).encode(), content_type="application/json")


def read_header(bucket: Bucket, batch: str) -> Header | None:
    """Return a batch's header, None if the bucket has no such batch.

    Raises:
        InputError: the object is damaged.
    """
    key = header_key(batch)
    try:
        return Header.model_validate_json(bucket.get(key))
    except MissingObjectError:
        return None
    except ValidationError as error:
        raise InputError(f"{key} is damaged: {_describe(error)}; restore it, or delete the batch") from None


class ManifestReader:
    """Reads jobs by index and caches the last ``parts`` parts. Thread-safe.

    ``created_ms`` is the creation of the batch. A reader that lives as long as a worker needs it: a batch may be
    deleted, and another one submitted under its name.
    """

    def __init__(self, bucket: Bucket, *, parts: int = 8) -> None:
        self._bucket = bucket
        self._limit = parts
        # cached unparsed: a few MB of brackets would be gigabytes of objects
        self._parts: OrderedDict[tuple[str, int, int], list[bytes]] = OrderedDict()
        self._lock = Lock()

    def job(self, batch: str, index: int, created_ms: int = 0) -> Job:
        """Return a job, validated again: others may be able to write to the bucket.

        Raises:
            InputError: the manifest has no such job, or its entry is invalid.
        """
        entry = self.entry(batch, index, created_ms)
        try:
            return Job.model_validate({**entry, "batch": batch, "index": index})
        except ValidationError as error:
            self._forget(batch, part_of(index), created_ms)
            raise InputError(f"job {batch}/{index} is not valid in the manifest: {_describe(error)}") from None

    def load(self, batch: str, index: int, created_ms: int = 0) -> None:
        """Read the part that has a job.

        Raises:
            InputError: it is not a part of a manifest.
        """
        self._part(batch, part_of(index), created_ms)

    def entry(self, batch: str, index: int, created_ms: int = 0) -> dict[str, Any]:
        """Return a job's fields as stored. An invalid row's entry has ``invalid`` instead of a prompt.

        Raises:
            InputError: the manifest has no such job.
        """
        part = part_of(index)
        lines = self._part(batch, part, created_ms)
        try:
            if index % PART_JOBS >= len(lines):
                raise InputError(f"job {batch}/{index} is not in the manifest")
            entry = parse(lines[index % PART_JOBS], name=manifest_key(batch, part))
        except InputError:
            self._forget(batch, part, created_ms)
            raise
        if "trace" in entry:
            # written by latentfarm 0.1
            entry["save_intermediates"] = entry.pop("trace")
        return entry

    def _forget(self, batch: str, part: int, created_ms: int) -> None:
        """Drop a part that is damaged or too short, so that it is read again: the store may have it whole by then."""
        with self._lock:
            self._parts.pop((batch, part, created_ms), None)

    def _part(self, batch: str, part: int, created_ms: int) -> list[bytes]:
        cached = (batch, part, created_ms)
        with self._lock:
            if cached in self._parts:
                self._parts.move_to_end(cached)
                return self._parts[cached]
        key = manifest_key(batch, part)
        lines = unpack_lines(self._bucket.get(key), name=key)
        with self._lock:
            self._parts[cached] = lines
            while len(self._parts) > self._limit:
                self._parts.popitem(last=False)
        return lines


def _describe(error: ValidationError) -> str:
    """Return the invalid fields and their problems, without values: the text goes to logs and into the ledger."""
    problems = [
        f"{'.'.join(str(place)[:60] for place in problem['loc'][:2])}: {problem['msg'][:200]}"
        for problem in error.errors(include_url=False, include_context=False, include_input=False)[:8]
    ]
    return "; ".join(problems)

"""Scan a batch's objects and derive every job's state from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from latentfarm.job_state import JobState
from latentfarm.ledger import JobRecord, Ledger
from latentfarm.ledger.records import is_truncated
from latentfarm.limits import PART_JOBS
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.embedded_receipt import embedded_receipt
from latentfarm.storage.keys import (
    checkpoint_key,
    drafts_prefix,
    images_prefix,
    manifest_key,
    parse_draft_key,
    parse_image_key,
    part_indices,
)
from latentfarm.storage.manifest import Header, digest_parts
from latentfarm.storage.part_codec import parse, unpack_lines
from latentfarm.storage.results import read_part

_NO_ERROR = {"code": "unknown", "message": ""}


@dataclass(frozen=True)
class ManifestExtent:
    """The jobs of a batch's manifest. If its submission was interrupted, those of its leading full parts."""

    batch: str
    total: int
    parts_digest: str
    closed: bool

    @classmethod
    def read(cls, bucket: Bucket, header: Header) -> Self:
        """Return the extent from the header, or by reading every part if the header has no total.

        A small batch is stored with its total at once, in any order, so its part is read too.
        """
        if header.total is not None and (
            header.total >= PART_JOBS or len(_manifest_lines(bucket, header.batch, 0)) == header.total
        ):
            return cls(header.batch, header.total, header.parts_digest, closed=True)
        digest, part = "", 0
        while len(lines := _manifest_lines(bucket, header.batch, part)) == PART_JOBS:
            digest = digest_parts(digest, b"".join(line + b"\n" for line in lines))
            part += 1
        return cls(header.batch, part * PART_JOBS, digest, closed=False)

    @property
    def parts(self) -> int:
        """The number of parts."""
        return -(-self.total // PART_JOBS)


@dataclass(frozen=True)
class PartScan:
    """The states of a part's jobs.

    Attributes:
        first: index of the first job.
        states: the states that the bucket proves.
        before: the states in the ledger; None for jobs that it does not have.
        receipts: receipts that are in images and previews of drafts only, by index.
        drafts: epochs of the checkpoints of the drafted jobs, by index.
        errors: errors of the failed jobs, by index.
        broken: keys of images and previews that do not decode or belong to another job.
        flushed: whether the bucket's results have every line of the part.
        generation: generation of the object that has them, or some of them; 0 without one.
        truncated: done jobs whose prompt was too long for the model.
    """

    first: int
    states: list[JobState]
    before: list[JobState | None]
    receipts: dict[int, dict[str, Any]]
    drafts: dict[int, int]
    errors: dict[int, dict[str, str]]
    broken: list[str]
    flushed: bool
    generation: int
    truncated: int


@dataclass(frozen=True)
class _Committed:
    """The jobs of a part whose image, or whose draft, is in the bucket.

    ``lines`` are those of results, by index; ``receipts`` those of objects that no line names; ``broken`` are keys of
    objects that prove nothing.
    """

    lines: dict[int, dict[str, Any]]
    receipts: dict[int, dict[str, Any]]
    broken: list[str]

    @property
    def indices(self) -> set[int]:
        """The indices of the jobs."""
        return {*self.lines, *self.receipts}

    def epoch(self, index: int) -> int:
        """Return the epoch of a job's image or draft."""
        found: int = (self.receipts.get(index) or self.lines[index])["epoch"]
        return found


@dataclass(frozen=True)
class BatchScan:
    """Scans the parts of one batch.

    Attributes:
        ledger: the ledger; None if it does not have the batch.
        bucket: the bucket.
        extent: the jobs of the manifest.
        generations: the highest generation of results in the bucket of each part that has any.
        cancelled: the user has cancelled the batch.
        with_drafts: the bucket has drafts of the batch, or checkpoints.
    """

    ledger: Ledger | None
    bucket: Bucket
    extent: ManifestExtent
    generations: Mapping[int, int]
    cancelled: bool
    with_drafts: bool

    def part(self, part: int) -> PartScan:
        """Scan a part: its results, the images and drafts that they do not list, and what only the ledger has."""
        batch, indices = self.extent.batch, part_indices(part, self.extent.total)
        generation = self.generations.get(part)
        records = self.ledger.jobs(batch, indices) if self.ledger else []
        images = _list_images(self.bucket, batch, part)
        # in a batch that is cancelled no job is drafted
        previews = _list_drafts(self.bucket, batch, part) if self.with_drafts and not self.cancelled else {}
        stored = [] if generation is None else read_part(self.bucket, batch, part, generation)
        lines = {line["index"]: line for line in stored if line["index"] in indices}
        done = self._committed(JobState.DONE, lines, images, set(indices))
        discarded = set() if self.cancelled else _discarded(lines, records) - done.indices
        drafted = self._committed(JobState.DRAFTED, lines, previews, {*indices} - done.indices - discarded)
        known = done.indices | discarded | drafted.indices
        errors = self._errors(part, lines, records, {*indices} - known)
        states = derive_states(indices, done=done.indices, discarded=discarded, drafted=drafted.indices, failed=errors)
        receipts = {**done.receipts, **drafted.receipts}
        return PartScan(
            first=indices.start,
            states=states,
            before=[record.state for record in records] if self.ledger else [None] * len(indices),
            receipts=receipts,
            drafts={index: drafted.epoch(index) for index in sorted(drafted.indices)},
            errors=errors,
            broken=done.broken + drafted.broken,
            flushed=not receipts
            and [lines.get(index, {}).get("state") for index in indices] == [state.word for state in states],
            generation=generation or 0,
            truncated=sum(map(is_truncated, [*done.lines.values(), *done.receipts.values()])),
        )

    def _committed(
        self,
        state: JobState,
        lines: Mapping[int, dict[str, Any]],
        keys: Mapping[int, Mapping[int, str]],
        indices: Collection[int],
    ) -> _Committed:
        """Return the images, or the drafts, of some jobs. ``keys`` are those of the objects, by index and epoch."""
        proved = {
            index: line
            for index, line in lines.items()
            if index in indices and line["state"] == state.word and line["key"] in keys.get(index, {}).values()
        }
        unlisted = {index: found for index, found in keys.items() if index in indices and index not in proved}
        receipts, broken = _read_receipts(self.bucket, self.extent.batch, unlisted)
        if state is JobState.DRAFTED:
            receipts = {index: receipt for index, receipt in receipts.items() if "draft" in receipt}
        return _Committed(proved, receipts, broken)

    def _errors(
        self, part: int, lines: Mapping[int, dict[str, Any]], records: Sequence[JobRecord], indices: Collection[int]
    ) -> dict[int, dict[str, str]]:
        """Return the errors of those of these jobs that have failed: in the results, in the ledger, or as rows."""
        failed = JobState.FAILED.word
        errors = {index: line.get("error") or _NO_ERROR for index, line in lines.items() if line["state"] == failed}
        if any(index not in errors for index in indices):
            span = part_indices(part, self.extent.total)
            invalid = _invalid_rows(_manifest_lines(self.bucket, self.extent.batch, part), span)
            errors = {**invalid, **_failures(records), **errors}
        return {index: error for index, error in errors.items() if index in indices}


def derive_states(
    indices: range,
    *,
    done: Collection[int],
    discarded: Collection[int] = (),
    drafted: Collection[int] = (),
    failed: Collection[int],
) -> list[JobState]:
    """Return the state of each job. An image outweighs an error: it was made after the failure was stored.

    A draft outweighs one, too: it can be finished again.
    """
    ends = (
        (JobState.DONE, done),
        (JobState.CANCELLED, discarded),
        (JobState.DRAFTED, drafted),
        (JobState.FAILED, failed),
    )
    return [next((state for state, found in ends if index in found), JobState.PENDING) for index in indices]


def _discarded(lines: Mapping[int, Mapping[str, Any]], records: Sequence[JobRecord]) -> set[int]:
    """Return the jobs of a batch that is not cancelled whose drafts were discarded."""
    listed = {index for index, line in lines.items() if line["state"] == JobState.CANCELLED.word}
    return listed | {record.index for record in records if record.state is JobState.CANCELLED}


def _manifest_lines(bucket: Bucket, batch: str, part: int) -> list[bytes]:
    key = manifest_key(batch, part)
    try:
        return unpack_lines(bucket.get(key), name=key)
    except MissingObjectError:
        return []


def _list_images(bucket: Bucket, batch: str, part: int) -> dict[int, dict[int, str]]:
    """Return the keys of a part's images by index and epoch."""
    found: dict[int, dict[int, str]] = {}
    for key in bucket.keys(images_prefix(batch, part)):
        if parsed := parse_image_key(key):
            index, epoch = parsed
            found.setdefault(index, {})[epoch] = key
    return found


def _list_drafts(bucket: Bucket, batch: str, part: int) -> dict[int, dict[int, str]]:
    """Return the keys of previews by index and epoch, of those drafts that have a checkpoint too."""
    keys = set(bucket.keys(drafts_prefix(batch, part)))
    found: dict[int, dict[int, str]] = {}
    for key in keys:
        parsed = parse_draft_key(key)
        if parsed and key != (checkpoint := checkpoint_key(batch, *parsed)) and checkpoint in keys:
            index, epoch = parsed
            found.setdefault(index, {})[epoch] = key
    return found


def _read_receipts(
    bucket: Bucket, batch: str, images: Mapping[int, Mapping[int, str]]
) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Return the receipt in the latest valid image of each job, and the keys of broken images."""
    receipts: dict[int, dict[str, Any]] = {}
    broken: list[str] = []
    for index, keys in images.items():
        for epoch in sorted(keys, reverse=True):
            key = keys[epoch]
            receipt = embedded_receipt(bucket.get(key), key, f"{batch}/{index}")
            if receipt is not None:
                receipts[index] = {**receipt, "key": key, "epoch": epoch}
                break
            broken.append(key)
    return receipts, broken


def _failures(records: Sequence[JobRecord]) -> dict[int, dict[str, str]]:
    return {record.index: record.error for record in records if record.state is JobState.FAILED and record.error}


def _invalid_rows(manifest: Sequence[bytes], indices: range) -> dict[int, dict[str, str]]:
    """Return the errors of invalid rows by index."""
    return {
        index: error
        for index, line in zip(indices, manifest, strict=False)
        # parsing every line would take most of a scan's time
        if b'"invalid"' in line and (error := parse(line).get("invalid"))
    }

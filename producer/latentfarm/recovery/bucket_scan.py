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
from latentfarm.storage.keys import images_prefix, manifest_key, parse_image_key, part_indices
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
        receipts: receipts that are in images only, by index.
        errors: errors of the failed jobs, by index.
        broken: keys of images that do not decode or belong to another job.
        flushed: whether the bucket's results have every line of the part.
        generation: generation of the object that has them, or some of them; 0 without one.
        truncated: done jobs whose prompt was too long for the model.
    """

    first: int
    states: list[JobState]
    before: list[JobState | None]
    receipts: dict[int, dict[str, Any]]
    errors: dict[int, dict[str, str]]
    broken: list[str]
    flushed: bool
    generation: int
    truncated: int


def scan_part(
    ledger: Ledger | None, bucket: Bucket, extent: ManifestExtent, part: int, generation: int | None
) -> PartScan:
    """Scan a part: its results, the images that they do not list, and the failures that only the ledger has.

    ``ledger`` is None if it does not have the batch. ``generation`` is the highest of the part's results in the bucket,
    None without any.
    """
    indices = part_indices(part, extent.total)
    records = ledger.jobs(extent.batch, indices) if ledger else []
    images = _list_images(bucket, extent.batch, part)
    stored = [] if generation is None else read_part(bucket, extent.batch, part, generation)
    lines = {line["index"]: line for line in stored if line["index"] in indices}
    done = {index: line for index, line in lines.items() if _is_proved(line, images.get(index, {}))}
    unlisted = {index: keys for index, keys in images.items() if index in indices and index not in done}
    receipts, broken = _read_receipts(bucket, extent.batch, unlisted)
    errors = {
        index: line.get("error") or _NO_ERROR for index, line in lines.items() if line["state"] == JobState.FAILED.word
    }
    if any(index not in done and index not in receipts and index not in errors for index in indices):
        invalid = _invalid_rows(_manifest_lines(bucket, extent.batch, part), indices)
        errors = {**invalid, **_failures(records), **errors}
    states = derive_states(indices, done={*done, *receipts}, failed=errors)
    return PartScan(
        first=indices.start,
        states=states,
        before=[record.state for record in records] if ledger else [None] * len(indices),
        receipts=receipts,
        errors={index: errors[index] for index, state in zip(indices, states, strict=True) if state is JobState.FAILED},
        broken=broken,
        flushed=JobState.PENDING not in states and not receipts and len(lines) == len(indices),
        generation=generation or 0,
        truncated=sum(map(is_truncated, [*done.values(), *receipts.values()])),
    )


def derive_states(indices: range, *, done: Collection[int], failed: Collection[int]) -> list[JobState]:
    """Return the state of each job. An image outweighs an error: it was made after the failure was stored."""
    return [
        JobState.DONE if index in done else JobState.FAILED if index in failed else JobState.PENDING
        for index in indices
    ]


def _is_proved(line: Mapping[str, Any], images: Mapping[int, str]) -> bool:
    return line["state"] == JobState.DONE.word and line["key"] in images.values()


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

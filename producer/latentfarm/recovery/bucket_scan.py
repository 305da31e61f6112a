"""What lies in the bucket of a batch: what was asked for, and for each job what proves its state."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from PIL import Image

from latentfarm.image_formats import embedded_text, format_of
from latentfarm.job_state import JobState
from latentfarm.ledger import JobRecord, Ledger
from latentfarm.ledger.records import is_truncated
from latentfarm.limits import MAX_SIDE, PART_JOBS
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import images_prefix, manifest_key, parse_image_key, part_indices
from latentfarm.storage.manifest import Header, digest_parts
from latentfarm.storage.part_codec import parse, unpack_lines
from latentfarm.storage.results import read_part

#: pixels of an image that is decoded
_MAX_PIXELS = MAX_SIDE * MAX_SIDE


@dataclass(frozen=True)
class ManifestExtent:
    """A batch's manifest; of one whose submission was cut, its whole parts from the first on."""

    batch: str
    total: int
    chain: str
    closed: bool

    @classmethod
    def read(cls, bucket: Bucket, header: Header) -> Self:
        """Read how much there is; only an open end has to be looked for part by part."""
        if header.total is not None:
            return cls(header.batch, header.total, header.parts_digest, closed=True)
        chain, part = "", 0
        while len(lines := _manifest_lines(bucket, header.batch, part)) == PART_JOBS:
            chain = digest_parts(chain, b"".join(line + b"\n" for line in lines))
            part += 1
        return cls(header.batch, part * PART_JOBS, chain, closed=False)

    @property
    def parts(self) -> int:
        """How many parts it has."""
        return -(-self.total // PART_JOBS)


def _manifest_lines(bucket: Bucket, batch: str, part: int) -> list[bytes]:
    key = manifest_key(batch, part)
    try:
        return unpack_lines(bucket.get(key), name=key)
    except MissingObjectError:
        return []


@dataclass
class PartScan:
    """One part's jobs: their ``states`` as proved, ``before`` as the ledger had them (None: not at all).

    ``receipts`` and ``errors`` are by index; ``broken`` are keys of images that do not count; ``flushed`` says that the
    part's results lie in the bucket and agree; ``truncated`` counts done jobs whose text lost its end.
    """

    first: int
    states: list[JobState]
    before: Sequence[JobState | None]
    receipts: dict[int, dict[str, Any]] = field(default_factory=dict)
    errors: dict[int, dict[str, str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    flushed: bool = False
    truncated: int = 0

    @classmethod
    def gather(cls, ledger: Ledger | None, bucket: Bucket, asked: ManifestExtent, part: int) -> Self:
        """Look at a part: its results, the images that they do not tell of, and failures that only the ledger knows."""
        indices = part_indices(part, asked.total)
        records = ledger.jobs(asked.batch, indices) if ledger else []
        before: list[JobState | None] = [None] * len(indices) if ledger is None else [each.state for each in records]
        found = cls(indices.start, [JobState.PENDING] * len(indices), before)
        images = _images(bucket, asked.batch, part)
        lines = [line for line in read_part(bucket, asked.batch, part) if line["index"] in indices]
        for line in lines:
            found._take_line(line, images.get(line["index"], {}))
        for index, keys in images.items():
            if index in indices and found._state(index) is not JobState.DONE:
                found._take_image(bucket, asked.batch, index, keys)
        if JobState.PENDING in found.states:
            found._take_failures(records, _manifest_lines(bucket, asked.batch, part))
        ended = JobState.PENDING not in found.states
        found.flushed = ended and not found.receipts and len(lines) == len(indices)
        return found

    def _state(self, index: int) -> JobState:
        return self.states[index - self.first]

    def _done(self, index: int, receipt: dict[str, Any]) -> None:
        self.states[index - self.first] = JobState.DONE
        self.truncated += is_truncated(receipt)

    def _take_line(self, line: dict[str, Any], images: dict[int, str]) -> None:
        index = line["index"]
        if line["state"] == JobState.DONE.word and line["key"] in images.values():
            self._done(index, line)
        elif line["state"] == JobState.FAILED.word:
            self._fail(index, line.get("error") or {"code": "unknown", "message": ""})

    def _take_image(self, bucket: Bucket, batch: str, index: int, keys: dict[int, str]) -> None:
        for epoch in sorted(keys, reverse=True):
            receipt = embedded_receipt(bucket.get(keys[epoch]), keys[epoch], f"{batch}/{index}")
            if receipt is not None:
                self._done(index, receipt)
                self.receipts[index] = {**receipt, "key": keys[epoch], "epoch": epoch}
                self.errors.pop(index, None)
                return
            self.broken.append(keys[epoch])

    def _take_failures(self, records: Sequence[JobRecord], manifest: Sequence[bytes]) -> None:
        for record in records:
            if self._state(record.index) is JobState.PENDING and record.state is JobState.FAILED and record.error:
                self._fail(record.index, record.error)
        for at, line in enumerate(manifest[: len(self.states)]):
            if self.states[at] is JobState.PENDING and b'"invalid"' in line and (error := parse(line).get("invalid")):
                self._fail(self.first + at, error)

    def _fail(self, index: int, error: dict[str, str]) -> None:
        self.states[index - self.first] = JobState.FAILED
        self.errors[index] = error


def _images(bucket: Bucket, batch: str, part: int) -> dict[int, dict[int, str]]:
    """Return the keys of a part's images by index and epoch."""
    found: dict[int, dict[int, str]] = {}
    for key in bucket.keys(images_prefix(batch, part)):
        if named := parse_image_key(key):
            found.setdefault(named[0], {})[named[1]] = key
    return found


def embedded_receipt(body: bytes, key: str, job: str) -> dict[str, Any] | None:
    """Return what an image tells of itself, with its own sha256.

    None if it is broken, another job's, or not of the format that its key's ending says.
    """
    made = format_of(key)
    if made is None:
        return None
    try:
        with Image.open(io.BytesIO(body), formats=[made.pillow]) as image:
            if image.width * image.height > _MAX_PIXELS:
                return None
            image.load()
            written = json.loads(embedded_text(image).get("latentfarm", "{}"))
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        return None
    if not isinstance(written, dict) or written.pop("job", job) != job:
        return None
    return {**written, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}

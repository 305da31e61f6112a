"""The layout of object keys in the bucket."""

from __future__ import annotations

import re

from latentfarm.image_formats import ENDINGS, PNG, ImageFormat
from latentfarm.job import PART_JOBS

_IMAGE_KEY = re.compile(rf"/(\d{{8,}})-(\d+)\.(?:{ENDINGS})\Z")


def part_of(index: int) -> int:
    """Return the number of the part that a job belongs to."""
    return index // PART_JOBS


def part_indices(part: int, total: int) -> range:
    """Return the jobs of a part, in a batch of so many."""
    return range(part * PART_JOBS, min((part + 1) * PART_JOBS, total))


def batch_prefix(batch: str) -> str:
    """Return what all keys of a batch begin with."""
    return f"batches/{batch}/"


def header_key(batch: str) -> str:
    """Return the key of what was asked, which makes a manifest whole."""
    return f"batches/{batch}/batch.json"


def control_key(batch: str) -> str:
    """Return the key of what its user has decided about the batch since."""
    return f"batches/{batch}/control.json"


def manifest_key(batch: str, part: int) -> str:
    """Return the key of a manifest part."""
    return f"batches/{batch}/manifest/part-{part:05d}.jsonl.gz"


def results_key(batch: str, part: int) -> str:
    """Return the key of a part of receipts."""
    return f"batches/{batch}/results/part-{part:05d}.jsonl.gz"


def images_prefix(batch: str, part: int) -> str:
    """Return what the keys of a part's images begin with."""
    return f"batches/{batch}/images/{part:05d}/"


def traces_prefix(batch: str, part: int) -> str:
    """Return what the keys of a part's traces begin with."""
    return f"batches/{batch}/traces/{part:05d}/"


def image_key(batch: str, index: int, epoch: int, image_format: ImageFormat = PNG) -> str:
    """Return the key of what a lease makes of a job.

    The epoch in it keeps a worker that was presumed dead from overwriting what its successor has stored.
    """
    return f"{images_prefix(batch, part_of(index))}{index:08d}-{epoch}{image_format.ending}"


def trace_key(batch: str, index: int, epoch: int) -> str:
    """Return the key of a job's strip from noise to result, a PNG whatever the picture is."""
    return f"{traces_prefix(batch, part_of(index))}{index:08d}-{epoch}{PNG.ending}"


def parse_image_key(key: str) -> tuple[int, int] | None:
    """Return the index and the epoch in the key of an image or a trace, None where it is none."""
    found = _IMAGE_KEY.search(key)
    return (int(found[1]), int(found[2])) if found else None


#: bytes of an object that is read whole; the largest of ours, a strip of eight large pictures, has less than half
MAX_OBJECT_BYTES = 256 * 1024 * 1024

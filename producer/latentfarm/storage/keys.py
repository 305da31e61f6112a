"""The layout of object keys in the bucket, and the size limit of its objects.

::

    batches/<batch>/batch.json                               header: model, digest; total once the manifest is whole
    batches/<batch>/control.json                             later decisions: paused, cancelled, priority
    batches/<batch>/manifest/part-00017.jsonl.gz             jobs 17000 to 17999, prompts included
    batches/<batch>/images/00017/00017042-<epoch>.png        image of job 17042, made under that lease; or .webp, .jpg
    batches/<batch>/intermediates/00017/00017042-<epoch>.png its strip of intermediate images, with save_intermediates
    batches/<batch>/previews/00017042-<epoch>-<number>.png   its partial image <number>, with partial_images
    batches/<batch>/drafts/00017042-<epoch>.safetensors      the checkpoint of job 17042, drafted or parked
    batches/<batch>/drafts/00017042-<epoch>.png              the preview of its draft; or .webp, .jpg
    batches/<batch>/draft-results/part-00017.<id>.jsonl.gz   receipts of drafts of theirs, finished or discarded since
    batches/<batch>/results/part-00017.jsonl.gz              receipts of jobs 17000 to 17999
    batches/<batch>/results/part-00017.<generation>.jsonl.gz those after a retry or a recovery; the highest counts
    batches/<batch>/picks/<time>-<id>-<images>.jsonl.gz      changes of picks and ratings, of so many images
    inputs/<sha256>                                          an input image as it was given, of any number of batches
"""

from __future__ import annotations

import re

from latentfarm.image_formats import EXTENSIONS, PNG, ImageFormat
from latentfarm.limits import PART_JOBS

#: bytes of the largest object that is read; a strip of eight large images, our largest, has less than half
MAX_OBJECT_BYTES = 256 * 1024 * 1024

INPUTS_PREFIX, BATCHES_PREFIX = "inputs/", "batches/"

_RESULTS_KEY = re.compile(r"/results/part-(\d{5,})\.(?:([1-9]\d*)\.)?jsonl\.gz\Z")
_PREVIEW_KEY = re.compile(rf"/previews/(\d{{8,}})-(\d+)-(\d+)\.(?:{EXTENSIONS})\Z")
_DRAFT_KEY = re.compile(rf"/drafts/(\d{{8,}})-(\d+)\.(?:safetensors|{EXTENSIONS})\Z")
_DRAFT_RESULTS_KEY = re.compile(r"/draft-results/part-(\d{5,})\.[0-9a-f]{16}\.jsonl\.gz\Z")
_PICKS_KEY = re.compile(r"/picks/(\d{16,})-([0-9a-f]{16})-(\d+)\.jsonl\.gz\Z")
_IMAGE_KEY = re.compile(rf"/(\d{{8,}})-(\d+)\.(?:{EXTENSIONS})\Z")


def part_of(index: int) -> int:
    """Return the number of a job's part."""
    return index // PART_JOBS


def part_indices(part: int, total: int) -> range:
    """Return the indices of a part's jobs, in a batch of ``total`` jobs."""
    return range(part * PART_JOBS, min((part + 1) * PART_JOBS, total))


def input_key(digest: str) -> str:
    """Return the key of an input image, whose digest is ``sha256:`` and 64 hex digits."""
    return f"{INPUTS_PREFIX}{digest.removeprefix('sha256:')}"


def batch_prefix(batch: str) -> str:
    """Return the prefix of all keys of a batch."""
    return f"{BATCHES_PREFIX}{batch}/"


def header_key(batch: str) -> str:
    """Return the key of a batch's header."""
    return f"batches/{batch}/batch.json"


def control_key(batch: str) -> str:
    """Return the key of the decisions made about a batch since its submission."""
    return f"batches/{batch}/control.json"


def manifest_prefix(batch: str) -> str:
    """Return the prefix of a batch's manifest parts."""
    return f"{batch_prefix(batch)}manifest/"


def manifest_key(batch: str, part: int) -> str:
    """Return the key of a manifest part."""
    return f"{manifest_prefix(batch)}part-{part:05d}.jsonl.gz"


def results_prefix(batch: str, part: int | None = None) -> str:
    """Return the prefix of a batch's receipts, or of those of one part."""
    return f"batches/{batch}/results/" + ("" if part is None else f"part-{part:05d}.")


def results_key(batch: str, part: int, generation: int = 0) -> str:
    """Return the key of a part of receipts.

    The generation is part of it. Without it, a writer that was slow could overwrite the results of a later retry.
    """
    return f"{results_prefix(batch, part)}{f'{generation}.' if generation else ''}jsonl.gz"


def parse_results_key(key: str) -> tuple[int, int] | None:
    """Return the part and the generation in the key of a part of receipts, None for any other key."""
    found = _RESULTS_KEY.search(key)
    return (int(found[1]), int(found[2] or 0)) if found else None


def images_prefix(batch: str, part: int) -> str:
    """Return the prefix of a part's images."""
    return f"batches/{batch}/images/{part:05d}/"


def intermediates_prefix(batch: str, part: int) -> str:
    """Return the prefix of a part's strips of intermediate images."""
    return f"batches/{batch}/intermediates/{part:05d}/"


def image_key(batch: str, index: int, epoch: int, image_format: ImageFormat = PNG) -> str:
    """Return the key of the image that a lease makes of a job.

    The epoch is part of it. Without it, a worker presumed dead could overwrite its successor's image.
    """
    return f"{images_prefix(batch, part_of(index))}{index:08d}-{epoch}{image_format.extension}"


def intermediates_key(batch: str, index: int, epoch: int) -> str:
    """Return the key of a job's strip of intermediate images: always a PNG."""
    return f"{intermediates_prefix(batch, part_of(index))}{index:08d}-{epoch}{PNG.extension}"


def preview_key(batch: str, index: int, epoch: int, number: int, image_format: ImageFormat = PNG) -> str:
    """Return the key of a job's partial image; ``number`` counts them from 0."""
    return f"{batch_prefix(batch)}previews/{index:08d}-{epoch}-{number}{image_format.extension}"


def parse_preview_key(key: str) -> tuple[int, int, int] | None:
    """Return index, epoch and number in the key of a partial image, None for any other key."""
    found = _PREVIEW_KEY.search(key)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def drafts_prefix(batch: str, part: int | None = None) -> str:
    """Return the prefix of the keys of checkpoints and drafts' previews.

    That of a part may be one of other parts' keys too.
    """
    # an index has eight digits or more, and the last three count within its part
    return f"{batch_prefix(batch)}drafts/{'' if part is None else f'{part:05d}'}"


def checkpoint_key(batch: str, index: int, epoch: int) -> str:
    """Return the key of the checkpoint that a lease makes of a job."""
    return f"{batch_prefix(batch)}drafts/{index:08d}-{epoch}.safetensors"


def draft_key(batch: str, index: int, epoch: int, image_format: ImageFormat = PNG) -> str:
    """Return the key of the preview of a job's draft."""
    return f"{batch_prefix(batch)}drafts/{index:08d}-{epoch}{image_format.extension}"


def parse_draft_key(key: str) -> tuple[int, int] | None:
    """Return the index and the epoch in the key of a checkpoint or of a draft's preview, None for any other key."""
    found = _DRAFT_KEY.search(key)
    return (int(found[1]), int(found[2])) if found else None


def draft_results_prefix(batch: str) -> str:
    """Return the prefix of the results of drafts that were finished or discarded."""
    return f"{batch_prefix(batch)}draft-results/"


def draft_results_key(batch: str, part: int, digest: str) -> str:
    """Return the key of some results of a part's drafts; ``digest``, 16 hex digits, is that of their lines."""
    return f"{draft_results_prefix(batch)}part-{part:05d}.{digest}.jsonl.gz"


def parse_draft_results_key(key: str) -> int | None:
    """Return the part in the key of results of drafts, None for any other key."""
    found = _DRAFT_RESULTS_KEY.search(key)
    return int(found[1]) if found else None


def picks_prefix(batch: str) -> str:
    """Return the prefix of a batch's picks."""
    return f"{batch_prefix(batch)}picks/"


def picks_key(batch: str, at_us: int, unique: str, images: int) -> str:
    """Return the key of changes of picks; ``images`` is the number of images that are changed."""
    return f"{picks_prefix(batch)}{at_us:016d}-{unique}-{images}.jsonl.gz"


def parse_picks_key(key: str) -> int | None:
    """Return the number of images in the key of changes of picks, None for any other key."""
    found = _PICKS_KEY.search(key)
    return int(found[3]) if found else None


def parse_image_key(key: str) -> tuple[int, int] | None:
    """Return the index and the epoch in the key of an image or a strip, None for any other key."""
    found = _IMAGE_KEY.search(key)
    return (int(found[1]), int(found[2])) if found else None

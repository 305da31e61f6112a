"""A batch of 10^6 jobs in a second: what a recovery writes into the ledger, with a part here and there in the bucket.

Seven tenths of the batch are done, but for some failures; the rest is pending. The state of every job is real. Of the
parts in ``whole``, the rest is real too: the manifest, results, and images of 64 x 64 pixels of the first jobs. Failed
jobs are in these parts only, so lists of them are complete. The other parts have no object in the bucket: the server
answers with an error if a test reads prompts, results or images of them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentfarm import Batch, Farm
from latentfarm.batch_state import PausedBy
from latentfarm.job import Defaults, Row
from latentfarm.job_state import JobState
from latentfarm.ledger import Restoration
from latentfarm.limits import PART_JOBS
from latentfarm.storage.keys import image_key, part_indices, part_of
from latentfarm.storage.manifest import Header, PartWriter, write_header
from latentfarm.storage.results import flush_batch

JOBS = 1_000_000
#: the first parts, one in the middle, the last one that is done, and the first one that is pending
WHOLE = (0, 1, 350, 699, 700)
#: of the jobs of whole parts that are done, one of so many has failed
FAILED_EVERY = 50
ERRORS = (
    {"code": "invalid_image", "message": "every pixel is black"},
    {"code": "worker_lost", "message": "3 workers were lost while they rendered it"},
)
SIZE = 64
_DIGEST = hashlib.sha256(b"large").hexdigest()
_DONE_SHARE = 0.7


def make_large_batch(
    farm: Farm,
    name: str = "million",
    *,
    total: int = JOBS,
    whole: Collection[int] = WHOLE,
    images: int = 100,
    paused: bool = True,
) -> Batch:
    """Write a batch of ``mini`` into the ledger and parts of it into the bucket.

    Args:
        farm: the farm of the batch.
        name: the name of the batch.
        total: its number of jobs.
        whole: parts that are in the bucket.
        images: images in the bucket of each whole part.
        paused: paused by a user; without it, workers render jobs whose manifest is missing.
    """
    write_header(farm.bucket, Header(batch=name, model="mini", digest=_DIGEST, total=total, parts_digest=_DIGEST))
    for part in whole:
        _store_manifest(farm, name, part_indices(part, total))
    restoration = Restoration(farm.ledger, name)
    fields: dict[str, str | int | float] = {
        "model": "mini",
        "digest": _DIGEST,
        "priority": 0,
        "budget": 0.0,
        "canary": 0,
        "webhook": "",
    }
    pause = (
        {"paused": "to change the prompts", "paused_by": PausedBy.USER} if paused else {"paused": "", "paused_by": ""}
    )
    restoration.begin(total=total, fields=fields | pause)
    done = round(total * _DONE_SHARE)
    with ThreadPoolExecutor(4) as pool:
        for part in range(part_of(total - 1) + 1):
            indices = part_indices(part, total)
            if part not in whole:
                states = [JobState.DONE if index < done else JobState.PENDING for index in indices]
                restoration.write_part(part, states, receipts={}, errors={}, flushed=True)
                continue
            errors = {index: error for index in indices if index < done and (error := error_of(index))}
            finished = [index for index in indices if index < done and index not in errors]
            stored = pool.map(
                lambda index, first=indices.start: _receipt(farm, name, index, put=index < first + images), finished
            )
            receipts = dict(zip(finished, stored, strict=True))
            states = [_state(index, receipts, errors) for index in indices]
            restoration.write_part(part, states, receipts=receipts, errors=errors, flushed=False)
    restoration.end(parts_digest=_DIGEST, closed=True, cancelled=False)
    flush_batch(farm.ledger, farm.bucket, name)
    return farm.batch(name)


def prompt_of(index: int) -> str:
    """Return the prompt of a job."""
    color = ("red", "green", "blue", "yellow", "purple", "white")[index % 6]
    return f"a {color} {('circle', 'star', 'square')[index // 6 % 3]} on a plain background, number {index}"


def error_of(index: int) -> dict[str, str] | None:
    """Return the error of a job of a whole part that has ended; None if it is done."""
    at = index % PART_JOBS
    return ERRORS[at // FAILED_EVERY % len(ERRORS)] if at % FAILED_EVERY == FAILED_EVERY - 1 else None


def _state(index: int, receipts: Collection[int], errors: Collection[int]) -> JobState:
    return JobState.DONE if index in receipts else JobState.FAILED if index in errors else JobState.PENDING


def _store_manifest(farm: Farm, name: str, indices: range) -> None:
    writer = PartWriter(name, Defaults(width=SIZE, height=SIZE, num_inference_steps=4))
    # each part is as it is in the whole manifest: only the digest, which no reader checks, lacks the parts before
    writer.total, writer._part = indices.start, part_of(indices.start)
    parts: list[Any] = []
    for index in indices:
        parts += writer.add(Row(prompt=prompt_of(index), seed=index), index + 1)
    for part in [*parts, *writer.flush()]:
        part.store(farm.bucket, name)


def _receipt(farm: Farm, name: str, index: int, *, put: bool) -> dict[str, Any]:
    """Return the receipt of a job; with ``put``, store its image."""
    request = {
        "prompt": prompt_of(index),
        "negative_prompt": "",
        "width": SIZE,
        "height": SIZE,
        "num_inference_steps": 4,
        "guidance_scale": 7.5,
        "seed": index,
        "scheduler": "euler",
        "scheduler_options": {},
    }
    made = {"request": request, "model": "mini", "model_digest": _DIGEST, "plan": _DIGEST, "prompt_truncated": False}
    body, key = _image(f"{name}/{index}", index, made) if put else b"", image_key(name, index, 1)
    if put:
        farm.bucket.put(key, body, content_type="image/png")
    facts = {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body), "epoch": 1}
    return {"worker": "worker-a", **facts, "render_s": 0.5, **made}


def _image(job: str, index: int, made: dict[str, Any]) -> bytes:
    info, out = PngInfo(), io.BytesIO()
    info.add_text("latentfarm", json.dumps({"job": job, **made}))
    image = Image.new("RGB", (SIZE, SIZE), (index * 37 % 256, index * 91 % 256, index * 13 % 256))
    image.save(out, format="PNG", pnginfo=info)
    return out.getvalue()

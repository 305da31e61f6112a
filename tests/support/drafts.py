"""Drafts without a worker: jobs that stop as drafts and are finished, with previews, checkpoints and images stored."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageDraw

from latentfarm import Batch, Farm
from latentfarm.ledger import Lease
from latentfarm.storage.keys import checkpoint_key, draft_key, image_key
from latentfarm.storage.results import flush_batch

#: evaluations of the model: of a whole job, and those after which it stops as a draft
WHOLE, STOPPED = 20, 6
SIDE = 64
#: in each receipt
MADE = {"request": {"seed": 7, "width": SIDE, "height": SIDE}, "model_digest": "m", "prompt_truncated": False}


def drafted_batch(farm: Farm, prompts: list[Any], name: str = "cats", **options: Any) -> Batch:
    """Return a batch whose jobs are drafts, after ``STOPPED`` of ``WHOLE`` evaluations; their results are stored."""
    batch = farm.submit(prompts, batch=name, draft=STOPPED, num_inference_steps=WHOLE, **options)
    work(farm)
    flush_batch(farm.ledger, farm.bucket, name)
    return batch


def work(farm: Farm, *, model: str = "mini", most: int = 500) -> int:
    """Do what a worker does with up to so many pending jobs: drafts stop, those to be finished are done.

    Return their number.
    """
    leases = farm.ledger.lease(model, "worker-a", most, lease_s=60)
    made = [(lease, _finished(farm, lease) if lease.finish else _draft(farm, lease)) for lease in leases]
    if made:
        farm.ledger.commit(made)
    return len(leases)


def _draft(farm: Farm, lease: Lease) -> dict[str, Any]:
    checkpoint = _put(farm, checkpoint_key(lease.batch, lease.index, lease.epoch), b"checkpoint")
    preview = _put(farm, draft_key(lease.batch, lease.index, lease.epoch), _png(lease.index, soft=True))
    facts = {"evaluations": STOPPED, "of": WHOLE, "checkpoint": checkpoint}
    # every score differs, and so do the hashes
    scores = {"sharpness": lease.index * 37 % 101 / 10, "phash": f"{(lease.index * 0x9E3779B97F4A7C15) % 2**64:016x}"}
    return {**preview, "draft": facts, "scores": scores, **MADE}


def _finished(farm: Farm, lease: Lease) -> dict[str, Any]:
    assert lease.checkpoint
    return {**_put(farm, image_key(lease.batch, lease.index, lease.epoch), _png(lease.index, soft=False)), **MADE}


def _put(farm: Farm, key: str, body: bytes) -> dict[str, Any]:
    farm.bucket.put(key, body)
    return {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}


def _png(index: int, *, soft: bool) -> bytes:
    color = tuple(index * step % 200 for step in (37, 91, 13))
    image = Image.new("RGB", (SIDE, SIDE), "white")
    for inset in range(8, 24, 2) if soft else (12,):
        share = (inset - 6) / 18 if soft else 1.0
        shade = tuple(round(255 - (255 - value) * share) for value in color)
        ImageDraw.Draw(image).ellipse((inset, inset, SIDE - inset, SIDE - inset), fill=shade)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def drafts_keys(farm: Farm, batch: str) -> Iterator[str]:
    """Yield the keys of the checkpoints and previews of a batch."""
    return farm.bucket.keys(f"batches/{batch}/drafts/")

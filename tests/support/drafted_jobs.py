"""Batches whose jobs are drafts, with small previews and checkpoints in the bucket, without a worker."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from tests.support.tiny_images import png

from latentfarm import Batch, Farm
from latentfarm.ledger import Lease
from latentfarm.storage.keys import checkpoint_key, draft_key, image_key
from latentfarm.storage.results import flush_batch

#: evaluations of the model that each draft has had, and of how many
EVALUATIONS, OF = 3, 10
Scores = Callable[[int], dict[str, Any]]


def render(
    farm: Farm,
    *,
    model: str = "mini",
    scores: Scores = lambda _: {},
    image: Callable[[Lease], bytes] = lambda lease: png(lease.name),
    stored: bool = True,
) -> None:
    """Render the pending jobs of the farm as a worker does: to drafts, and those that are to be finished to images.

    Unless ``stored``, objects are in the receipts only.
    """
    while leases := farm.ledger.lease(model, "worker-a", 500, lease_s=60):
        images = [(lease, receipt(farm, lease, scores, image, stored=stored)) for lease in leases]
        farm.ledger.commit(images)
        for lease in leases:
            if lease.finish:
                objects = checkpoint_key, draft_key
                farm.bucket.delete([name(lease.batch, lease.index, lease.checkpoint) for name in objects])


def receipt(
    farm: Farm,
    lease: Lease,
    scores: Scores = lambda _: {},
    image: Callable[[Lease], bytes] = lambda lease: png(lease.name),
    *,
    stored: bool = True,
) -> dict[str, Any]:
    """Store what a worker makes of a lease; return its receipt."""
    made = {"request": {"width": 64, "height": 64}, "scores": scores(lease.index)}
    if lease.finish:
        body, key = image(lease), image_key(lease.batch, lease.index, lease.epoch)
        farm.bucket.put(key, body)
        return {**_file(key, body), **made}
    preview, checkpoint = png(lease.name), f"checkpoint of {lease.name}".encode()
    keys = [name(lease.batch, lease.index, lease.epoch) for name in (draft_key, checkpoint_key)]
    for key, body in zip(keys, (preview, checkpoint), strict=True):
        if stored:
            farm.bucket.put(key, body)
    return {
        **_file(keys[0], preview),
        **made,
        "draft": {"evaluations": EVALUATIONS, "of": OF, "checkpoint": _file(keys[1], checkpoint)},
    }


def _file(key: str, body: bytes) -> dict[str, Any]:
    return {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}


def drafted_batch(farm: Farm, prompts: list[Any], name: str = "cats", **options: Any) -> Batch:
    """Return a batch whose jobs are drafts and whose results are stored."""
    batch = farm.submit(prompts, batch=name, num_inference_steps=OF, draft=EVALUATIONS / OF)
    render(farm, **options)
    flush_batch(farm.ledger, farm.bucket, name)
    return batch

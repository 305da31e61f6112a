"""Batches whose jobs are done, with small images in the bucket, without a worker."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tests.support.tiny_images import store

from latentfarm import Batch, Farm
from latentfarm.ledger import Lease
from latentfarm.storage.keys import image_key
from latentfarm.storage.results import flush_batch


def finish(farm: Farm, *, model: str = "mini", fail: Collection[int] = (), stored: bool = True) -> None:
    """Render the pending jobs of the farm as a worker does; those of ``fail`` fail.

    Unless ``stored``, images are in the receipts only.
    """
    while leases := farm.ledger.lease(model, "worker-a", 500, lease_s=60):
        for lease in leases:
            if lease.index in fail:
                farm.ledger.fail(lease, {"code": "nan", "message": "not finite"})
        done = [lease for lease in leases if lease.index not in fail]
        farm.ledger.commit([(lease, store(farm, lease) if stored else _receipt(lease)) for lease in done])


def _receipt(lease: Lease) -> dict[str, Any]:
    return {"key": image_key(lease.batch, lease.index, lease.epoch), "sha256": "", "bytes": 0}


def done_batch(farm: Farm, prompts: list[Any], name: str = "cats", **options: Any) -> Batch:
    """Return a batch whose jobs are done and whose results are stored."""
    batch = farm.submit(prompts, batch=name)
    finish(farm, **options)
    flush_batch(farm.ledger, farm.bucket, name)
    return batch

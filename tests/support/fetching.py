"""A batch's pictures as a fetch finds them, stored by a worker that renders nothing."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image

from latentfarm import Batch, Farm
from latentfarm.storage.bucket import Bucket


def picture(index: int) -> bytes:
    """A PNG of its own."""
    opened = io.BytesIO()
    Image.new("RGB", (8, 8), (index % 256, index // 256 % 256, 7)).save(opened, "PNG")
    return opened.getvalue()


def key_of(batch: Batch, index: int) -> str:
    """Where a picture lies; only its receipt needs to know."""
    return f"pictures/{batch.name}/{index}.png"


def work(
    farm: Farm,
    batch: Batch,
    *,
    count: int = 10**6,
    fail: frozenset[int] = frozenset(),
    traced: bool = False,
    offset: int = 0,
) -> None:
    """Do what a worker does with the next ``count`` jobs."""
    while count and (found := farm.ledger.lease("mini", "worker-a", min(count, 100), lease_s=30)):
        count -= len(found)
        for lease in found:
            if lease.index in fail:
                farm.ledger.fail(lease, {"code": "nan", "message": "not finite"})
                continue
            receipt = stored(farm.bucket, key_of(batch, lease.index), picture(lease.index + offset))
            if traced:
                receipt["intermediates"] = stored(
                    farm.bucket, f"{key_of(batch, lease.index)}.trace", picture(lease.index + 7)
                )
            request = {"width": 8, "height": 8, "scheduler": "PNDMScheduler"}
            farm.ledger.commit([(lease, {**receipt, "request": request, "worker": "worker-a"})])


def stored(bucket: Bucket, key: str, body: bytes) -> dict[str, Any]:
    """Put an object; return the receipt for it."""
    bucket.put(key, body)
    return {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}


def names_in(folder: Path) -> set[str]:
    """Return what a fetch has left in a folder, but for its own record."""
    return {file.name for file in folder.iterdir() if not file.name.startswith(".fetched")}

"""Batches for tests of a fetch: a worker that renders nothing, and made-up results."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image

from latentfarm import Batch, Farm
from latentfarm.job import Job
from latentfarm.storage.bucket import Bucket


def image_bytes(index: int) -> bytes:
    """Return a PNG that no other index has."""
    opened = io.BytesIO()
    Image.new("RGB", (8, 8), (index % 256, index // 256 % 256, 7)).save(opened, "PNG")
    return opened.getvalue()


def key_of(batch: Batch, index: int) -> str:
    """Return an image's key. Only its receipt has it, so it need not be like the worker's."""
    return f"images/{batch.name}/{index}.png"


def work(
    farm: Farm,
    batch: Batch,
    *,
    count: int = 10**6,
    fail: frozenset[int] = frozenset(),
    intermediates: bool = False,
    offset: int = 0,
) -> None:
    """Lease, store and commit the next ``count`` jobs, as a worker does."""
    while count and (found := farm.ledger.lease("mini", "worker-a", min(count, 100), lease_s=30)):
        count -= len(found)
        for lease in found:
            if lease.index in fail:
                farm.ledger.fail(lease, {"code": "nan", "message": "not finite"})
                continue
            receipt = stored(farm.bucket, key_of(batch, lease.index), image_bytes(lease.index + offset))
            if intermediates:
                receipt["intermediates"] = stored(
                    farm.bucket, f"{key_of(batch, lease.index)}.strip", image_bytes(lease.index + 7)
                )
            request = {"width": 8, "height": 8, "scheduler": "PNDMScheduler"}
            farm.ledger.commit([(lease, {**receipt, "request": request, "worker": "worker-a"})])


def stored(bucket: Bucket, key: str, body: bytes) -> dict[str, Any]:
    """Put an object and return its receipt."""
    bucket.put(key, body)
    return {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}


def names_in(folder: Path) -> set[str]:
    """Return the files of a fetch in a folder, without its state file."""
    return {file.name for file in folder.iterdir() if not file.name.startswith(".fetched")}


def result(index: int = 17, **fields: Any) -> dict[str, Any]:
    """Return a done job's result, updated with ``fields``."""
    request = Job(batch="cats", index=index, prompt="a cat", seed=9, width=512, height=768).request()
    receipt = {"key": f"k/{index}", "sha256": f"{index:064x}", "bytes": 30_000, "request": request}
    job = {"job": f"cats/{index}", "index": index, "row": 3, "id": None, "state": "done", "attempts": 1}
    return {**job, **receipt, **fields}

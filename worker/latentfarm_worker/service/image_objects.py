"""The objects of one image in the bucket: its file and its intermediates; or a draft's checkpoint and preview."""

from __future__ import annotations

import hashlib
import time
from typing import Any, NamedTuple

from latentfarm.image_formats import IMAGE_FORMATS, PNG, ImageFormat
from latentfarm.ledger import Lease
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import draft_key, image_key, intermediates_key
from latentfarm_worker.engine.outcomes import Rendered
from latentfarm_worker.images.encode import encode_image
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.service.checkpoints import Checkpoints
from latentfarm_worker.service.retries import Abandoned, Broken, Done, Retries
from latentfarm_worker.service.threads import Pool


class StoredObjects(NamedTuple):
    """What was stored of an image: the part of its receipt, and the seconds in which it was encoded and uploaded."""

    receipt: dict[str, Any]
    encode_s: float
    upload_s: float


class ImageObjects:
    """Encodes and stores the objects of images. Thread-safe.

    Args:
        bucket: the bucket.
        encoder: encodes the files.
        checkpoints: stores those of drafts.
        retries: repeats requests to the bucket.
        pool: the threads on which this runs, which count unexpected exceptions.
    """

    def __init__(
        self, bucket: Bucket, encoder: ImageFileEncoder, *, checkpoints: Checkpoints, retries: Retries, pool: Pool
    ) -> None:
        self._bucket = bucket
        self._encoder = encoder
        self._checkpoints = checkpoints
        self._retries = retries
        self._pool = pool

    def store(self, lease: Lease, image: Rendered) -> Done[StoredObjects] | Abandoned | Broken:
        """Store an image, or the checkpoint of a draft and then its preview, which names it.

        Raises:
            JobError: the image cannot be encoded; or any exception of an encoder.
        """
        began, upload_s = time.perf_counter(), 0.0
        receipt: dict[str, Any] = {}
        if image.checkpoint is not None:
            stored = self._put_checkpoint(lease, image)
            if not isinstance(stored, Done):
                return stored
            upload_s += time.perf_counter() - began
            receipt["draft"] = stored.value
        body = self._encoder.encode(image, draft=receipt.get("draft"))
        strip = None if image.strip is None else encode_image(image.strip, PNG.name, metadata={})
        image_format = IMAGE_FORMATS[image.job.image_format]
        key_of = draft_key if receipt else image_key
        files = {"": (key_of(lease.batch, lease.index, lease.epoch, image_format), body, image_format)}
        if strip is not None:
            files["intermediates"] = (intermediates_key(lease.batch, lease.index, lease.epoch), strip, PNG)
        for name, file in files.items():
            put_began = time.perf_counter()
            put = self._put(lease, *file)
            if not isinstance(put, Done):
                return put
            upload_s += time.perf_counter() - put_began
            receipt |= {name: put.value} if name else put.value
        encode_s = time.perf_counter() - began - upload_s
        return Done(StoredObjects({**receipt, **self._encoder.provenance(image)}, encode_s, upload_s))

    def _put_checkpoint(self, lease: Lease, image: Rendered) -> Done[dict[str, Any]] | Abandoned | Broken:
        """Store the checkpoint of a draft; return the draft's part of the receipt."""
        checkpoint = image.checkpoint
        assert checkpoint is not None  # noqa: S101 (it is a draft)

        def put() -> dict[str, Any]:
            stored = self._checkpoints.put(lease, checkpoint)
            return {"evaluations": checkpoint.evaluations, "of": image.evaluations, "checkpoint": stored}

        return self._retries.repeat("put", put, lease=lease, pool=self._pool)

    def _put(
        self, lease: Lease, key: str, body: bytes, image_format: ImageFormat
    ) -> Done[dict[str, Any]] | Abandoned | Broken:
        def put() -> dict[str, Any]:
            began = time.perf_counter()
            self._bucket.put(key, body, content_type=image_format.content_type)
            self._checkpoints.add_image(time.perf_counter() - began)
            return {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}

        return self._retries.repeat("put", put, lease=lease, pool=self._pool)

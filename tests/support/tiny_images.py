"""Images of 8 x 8 pixels that carry the receipt of a job, as a worker stores them."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentfarm.farm import Farm
from latentfarm.ledger import Lease
from latentfarm.storage.keys import checkpoint_key, draft_key, image_key

#: in a receipt and in the one embedded in its image
MADE = {"request": {"seed": 7}, "model_digest": "m", "prompt_truncated": True}


def png(job: str, **more: Any) -> bytes:
    """Return the image of a job, whose receipt has ``more`` fields."""
    info, out = PngInfo(), io.BytesIO()
    info.add_text("latentfarm", json.dumps({"job": job, **MADE, **more}))
    Image.new("RGB", (8, 8), (1, 2, 3)).save(out, format="PNG", pnginfo=info)
    return out.getvalue()


def store(farm: Farm, lease: Lease) -> dict[str, Any]:
    """Store the image of a leased job; return its receipt."""
    body, key = png(lease.name), image_key(lease.batch, lease.index, lease.epoch)
    farm.bucket.put(key, body)
    return {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body), **MADE}


def store_draft(farm: Farm, lease: Lease) -> dict[str, Any]:
    """Store the checkpoint and the preview of a leased job's draft; return its receipt."""
    checkpoint, key = (make(lease.batch, lease.index, lease.epoch) for make in (checkpoint_key, draft_key))
    state = b"latents"
    farm.bucket.put(checkpoint, state)
    about = {"key": checkpoint, "sha256": hashlib.sha256(state).hexdigest(), "bytes": len(state)}
    draft = {"draft": {"evaluations": 3, "of": 10, "checkpoint": about}}
    body = png(lease.name, **draft)
    farm.bucket.put(key, body)
    return {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body), **MADE, **draft}

"""A finished picture as its file: the bytes, and what they depend on, which stands in the file and in the receipt."""

from __future__ import annotations

import json
from typing import Any

import torch

from latentfarm import schedulers
from latentfarm.job import Job
from latentfarm_worker.engine.decoder import Rendered
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.images.a1111_parameters import parameters_text
from latentfarm_worker.images.encode import encode_image


class ImageEncoder:
    """Turns pictures of one engine into files; safe to share between threads.

    ``model`` is the alias under which the model is served. Nothing of when, where or by whom goes into a file: the same
    job gives the same bytes.
    """

    def __init__(self, engine: Engine, *, model: str, embed_metadata: bool) -> None:
        family = engine.family
        self._family = family
        self._model = model
        self._embed_metadata = embed_metadata
        # sums that are split among another number of threads are rounded otherwise; a GPU's threads are its own affair
        threads = {"threads": torch.get_num_threads()} if family.device.type == "cpu" else {}
        compiled = {"compiled": True} if family.compiled else {}
        self._conditions: dict[str, Any] = {
            "device": family.device.type,
            "dtype": str(family.dtype).removeprefix("torch."),
            **threads,
            **compiled,
            **({} if engine.exact else {"exactness": "free"}),
        }

    def encode(self, picture: Rendered) -> bytes:
        """Return the file of a picture, in the format that its job asks for."""
        metadata = self._metadata(picture) if self._embed_metadata else {}
        return encode_image(picture.pixels, picture.job.image_format, metadata=metadata)

    def provenance(self, picture: Rendered) -> dict[str, Any]:
        """Return what the picture's bytes depend on: a part of its receipt."""
        job = picture.job
        return {
            "request": {
                **job.request(),
                "width": picture.width,
                "height": picture.height,
                # a short name may stand for options: what is written down needs no table of ours
                "scheduler": picture.scheduler,
                "scheduler_options": {**_named_options(job), **job.scheduler_options},
            },
            "model": self._model,
            "model_digest": self._family.model_digest,
            "plan": picture.plan_digest,
            **self._conditions,
            "slots": picture.slots,
            "prompt_truncated": "prompt" in picture.truncated,
            **({"negative_prompt_truncated": True} if "negative_prompt" in picture.truncated else {}),
            **({"tiled": True} if picture.tiled else {}),
        }

    def _metadata(self, picture: Rendered) -> dict[str, str]:
        text = parameters_text(
            picture.job,
            width=picture.width,
            height=picture.height,
            scheduler=picture.scheduler,
            model=self._model,
            model_digest=self._family.model_digest,
        )
        receipt = {"job": picture.job.name, **self.provenance(picture)}
        return {"parameters": text, "latentfarm": json.dumps(receipt, ensure_ascii=False)}


def _named_options(job: Job) -> dict[str, object]:
    return dict(schedulers.resolve(job.scheduler).options) if job.scheduler else {}

"""The receipt of an image: what its bytes depend on, embedded in the file and stored in ``results/``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from latentfarm import schedulers
from latentfarm.a1111_parameters import parameters_text
from latentfarm.job import Job
from latentfarm_worker.device_conditions import device_conditions
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.engine.outcomes import Rendered
from latentfarm_worker.images.encode import encode_image
from latentfarm_worker.models import Family


class ImageFileEncoder:
    """Encode the images of one engine as files with their provenance inside. Thread-safe.

    A file contains no time, host or worker name, so the same job always gives the same bytes. That it was put down is
    in a file only if its bytes may depend on it: if it went on under other conditions.

    Args:
        engine: the engine that renders the images.
        model: the alias under which the model is served.
        embed_metadata: write ``parameters`` and ``latentfarm`` into each file.
    """

    def __init__(self, engine: Engine, *, model: str, embed_metadata: bool) -> None:
        family = engine.family
        self._family = family
        self._model = model
        self._embed_metadata = embed_metadata
        self._conditions: dict[str, Any] = {
            **device_conditions(family.device),
            "dtype": str(family.dtype).removeprefix("torch."),
            **({} if family.quantization == "none" else {"quantization": family.quantization}),
            **_text_conditions(family),
            **({"compiled": True} if family.compiled else {}),
            **({} if engine.deterministic else {"deterministic": False}),
        }

    def encode(self, image: Rendered, *, draft: Mapping[str, Any] | None = None) -> bytes:
        """Return the image, or the preview of a draft with this part of its receipt, in the format of its job."""
        metadata = self._metadata(image, draft) if self._embed_metadata else {}
        return encode_image(image.pixels, image.job.image_format, metadata=metadata)

    def provenance(self, image: Rendered) -> dict[str, Any]:
        """Return the part of the receipt that the image's bytes depend on."""
        job = image.job
        return {
            "request": {
                **job.request(),
                "width": image.requested[0],
                "height": image.requested[1],
                # a short scheduler name implies options: write them out, so that a reader needs no table of names
                "scheduler": image.scheduler,
                "scheduler_options": {**_named_options(job), **job.scheduler_options},
            },
            "model": self._model,
            "model_digest": self._family.model_digest,
            **({"adapters": [each._asdict() for each in image.adapters]} if image.adapters else {}),
            "plan": image.plan_digest,
            **self._conditions,
            "micro_batch": image.micro_batch,
            **_second_stage(image),
            **({"decode_group": image.decode_group} if image.decode_group > 1 else {}),
            "prompt_truncated": "prompt" in image.truncated,
            **({"negative_prompt_truncated": True} if "negative_prompt" in image.truncated else {}),
            **({"tiled": True} if image.tiled else {}),
            **({"spans": [span._asdict() for span in image.spans]} if image.spans else {}),
        }

    def _metadata(self, image: Rendered, draft: Mapping[str, Any] | None) -> dict[str, str]:
        text = parameters_text(
            image.job,
            width=image.requested[0],
            height=image.requested[1],
            scheduler=image.scheduler,
            model=self._model,
            model_digest=self._family.model_digest,
            scheduler_config=self._family.scheduler_config,
        )
        receipt = {"job": image.job.name, **self.provenance(image), **({} if draft is None else {"draft": draft})}
        if _made_alike(image):
            receipt.pop("spans", None)
        return {"parameters": text, "latentfarm": json.dumps(receipt, ensure_ascii=False)}


def _second_stage(image: Rendered) -> dict[str, Any]:
    """Return what the bytes of an image depend on besides its first stage; and its size, if the second is larger."""
    if image.second is None:
        return {}
    second = {"plan": image.second.plan_digest, "micro_batch": image.second.micro_batch}
    if image.job.refiner is not None:
        return {"refinement": second}
    return {"hires": {"width": image.width, "height": image.height, **second}}


def _made_alike(image: Rendered) -> bool:
    """Return whether all spans of an image were made under the conditions of its receipt."""
    rows = {image.micro_batch, *(() if image.second is None else (image.second.micro_batch,))}
    places = {(span.device, span.dtype) for span in image.spans}
    return len(places) < 2 and rows.issuperset(span.micro_batch for span in image.spans)


def _text_conditions(family: Family) -> dict[str, Any]:
    """Return how the prompts are encoded, where that is not as the model itself."""
    found = {}
    if family.text_quantization != "none":
        found["text_encoder_quantization"] = family.text_quantization
    if family.encoder_placement.device.type != family.device.type:
        # where a GPU renders, a CPU rounds otherwise
        found["text_encoder"] = ", ".join(str(value) for value in device_conditions(torch.device("cpu")).values())
    return found


def _named_options(job: Job) -> dict[str, object]:
    return dict(schedulers.resolve(job.scheduler).options) if job.scheduler else {}

"""The text ``info`` of the web UI's answers, which clients parse."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from latentfarm.a1111_parameters import parameters_of_result
from latentfarm.image_formats import PILLOW_FORMATS, embedded_text
from latentfarm.job import Job, job_of_result
from latentfarm.samplers import a1111_sampler


def info_text(images: Sequence[tuple[bytes, Mapping[str, Any]]], *, batch_size: int, notes: Sequence[str]) -> str:
    """Return the JSON text of the images of one request.

    Args:
        images: the file of each image and its result: request and receipt.
        batch_size: images of one batch of the web UI.
        notes: what differs from the web UI.
    """
    first = images[0][1]
    jobs = [job_of_result(result) for _, result in images]
    job = jobs[0]
    found = a1111_sampler(job.scheduler, job.scheduler_options)
    return json.dumps(
        {
            "prompt": job.prompt,
            "all_prompts": [each.prompt for each in jobs],
            "negative_prompt": job.negative_prompt,
            "all_negative_prompts": [each.negative_prompt for each in jobs],
            "seed": job.seed,
            "all_seeds": [each.seed for each in jobs],
            # without subseed_strength, which is refused, a subseed has no effect
            "subseed": -1,
            "all_subseeds": [-1 for _ in jobs],
            "subseed_strength": 0,
            "width": job.width,
            "height": job.height,
            "sampler_name": found[0] if found else job.scheduler,
            "cfg_scale": job.guidance_scale,
            "steps": job.num_inference_steps,
            "batch_size": batch_size,
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": first["model"],
            "sd_model_hash": first["model_digest"][:10],
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": _strength(job),
            "extra_generation_params": {},
            "index_of_first_image": 0,
            "infotexts": [_infotext(body, result) for body, result in images],
            "styles": [],
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.gmtime()),
            # the web UI counts from 1, the last layer
            "clip_skip": job.clip_skip + 1,
            "is_using_inpainting_conditioning": False,
            "version": "latentfarm",
            "notes": [*notes, *_truncations(result for _, result in images)],
        },
        ensure_ascii=False,
    )


def _strength(job: Job) -> float | None:
    """Return the share of the steps that was made on an image, or in a second stage; None without both."""
    if job.image is not None:
        return job.effective_strength
    return None if job.hires_scale is None else job.hires_strength


def _truncations(results: Iterable[Mapping[str, Any]]) -> set[str]:
    return {
        f"the {field.replace('_', ' ')} is longer than the model reads, so its end was ignored"
        for result in results
        for field in ("prompt", "negative_prompt")
        if result.get(f"{field}_truncated")
    }


def _infotext(body: bytes, result: Mapping[str, Any]) -> str:
    """Return the parameters that the file has, or, if its worker writes none into files, those of its receipt."""
    with Image.open(io.BytesIO(body), formats=PILLOW_FORMATS) as image:
        found = embedded_text(image).get("parameters")
    return found if found is not None else parameters_of_result(result) or ""

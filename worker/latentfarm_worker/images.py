"""Pixels to PNG bytes, with the settings that made them inside the file."""

from __future__ import annotations

import io
import json

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentfarm.job import Job

CONTENT_TYPE = "image/png"


def encode_png(pixels: torch.Tensor, *, metadata: dict[str, str]) -> bytes:
    """Return the PNG of ``pixels``, (height, width, 3) uint8 on the CPU, with a text chunk for each entry."""
    info = PngInfo()
    for key, text in metadata.items():
        # iTXt carries Unicode; tEXt is Latin-1, and what other programs look for first
        if text.isascii():
            info.add_text(key, text)
        else:
            info.add_itxt(key, text)
    out = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(out, format="PNG", pnginfo=info, compress_level=1)
    return out.getvalue()


def parameters_text(job: Job, *, width: int, height: int, scheduler: str, model: str, model_digest: str) -> str:
    """Return the text of the ``parameters`` chunk as AUTOMATIC1111's web UI writes and reads it."""
    settings = {
        "Steps": job.num_inference_steps,
        "Sampler": job.scheduler or scheduler,
        "CFG scale": f"{job.guidance_scale:g}",
        "Seed": job.seed,
        "Size": f"{width}x{height}",
        "Model hash": model_digest[:10],
        "Model": model,
    }
    if job.clip_skip:
        # there 1 is the last layer, and 2 skips one
        settings["Clip skip"] = job.clip_skip + 1
    lines = [job.prompt]
    if job.negative_prompt:
        lines.append(f"Negative prompt: {job.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:\n"') else value

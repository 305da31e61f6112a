"""The `parameters` text that AUTOMATIC1111's web UI writes into images and reads from them."""

from __future__ import annotations

import json

from latentfarm.job import Job


def parameters_text(job: Job, *, width: int, height: int, scheduler: str, model: str, model_digest: str) -> str:
    """Return a job's settings in the web UI's format. ``scheduler`` is the default for a job that names none."""
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
        # the web UI counts from 1 (the last layer); diffusers counts the layers that are skipped
        settings["Clip skip"] = job.clip_skip + 1
    lines = [job.prompt]
    if job.negative_prompt:
        lines.append(f"Negative prompt: {job.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:\n"') else value

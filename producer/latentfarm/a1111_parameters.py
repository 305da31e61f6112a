"""The ``parameters`` text that AUTOMATIC1111's web UI writes into images and reads from them.

Readers take the last line as the settings, and everything before it as the prompts (web UI:
``infotext_utils.parse_generation_parameters``; sd-parsers: ``_automatic1111.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from latentfarm import schedulers
from latentfarm.job import Job, job_of_result
from latentfarm.samplers import a1111_sampler

#: schedule types that become part of a sampler's name. Before 1.9 the web UI knew them in no other form; later versions
#: and other programs read both
_NAMED_SCHEDULES = frozenset({"Karras", "Exponential"})
_SCHEDULE_FLAGS = frozenset({"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"})
_ALGORITHM_FLAGS = frozenset({"algorithm_type", "solver_order", "solver_type"})
#: what the web UI takes for syntax: brackets are weights, and a backslash escapes
_BRACKETS = re.compile(r"[\\()\[\]]")
#: ``AND`` joins two prompts, ``BREAK`` ends a chunk, ``<lora:`` loads a network, and the number of a last ``16:9`` is
#: the prompt's weight. A backslash that escapes nothing is dropped by the web UI, and hides these from it.
_HIDDEN = re.compile(r"\bAND\b|\bBREAK\b|<(?=\w+:[^>]+>)|:(?=[-+]?(\d+\.?|\d*\.\d+)\s*\Z)")
#: the web UI's names of what enlarges an image for a second stage
_UPSCALERS = {"latent": "Latent", "pixel": "Lanczos"}
#: where the negative prompt begins, to readers
_NEGATIVE = "Negative prompt:"


def parameters_text(
    job: Job,
    *,
    width: int,
    height: int,
    scheduler: str,
    model: str,
    model_digest: str,
    scheduler_config: Mapping[str, object] | None = None,
) -> str:
    """Return a job's settings in the web UI's format.

    Args:
        job: the job.
        width: pixels of the image.
        height: pixels of the image.
        scheduler: the class for a job that names none.
        model: the model's alias.
        model_digest: the digest of its weights.
        scheduler_config: the model's own scheduler config, which holds where the job sets nothing else.
    """
    settings = {
        "Steps": job.num_inference_steps,
        **_sampler(job, scheduler, scheduler_config or {}),
        "CFG scale": f"{job.guidance_scale:g}",
        "Seed": job.seed,
        "Size": f"{width}x{height}",
        "Model hash": model_digest[:10],
        "Model": model,
        # the noise is drawn on the CPU; the web UI's default is the GPU
        "RNG": "CPU",
    }
    if job.clip_skip:
        # the web UI counts from 1 (the last layer); diffusers counts the layers that are skipped
        settings["Clip skip"] = job.clip_skip + 1
    settings |= _edits(job)
    settings["Job"] = job.name
    lines = [" ".join([_prompt(job, job.prompt), *(f"<lora:{lora.name}:{lora.scale:g}>" for lora in job.loras)])]
    if job.negative_prompt:
        lines.append(f"{_NEGATIVE} {_prompt(job, job.negative_prompt)}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items()))
    return "\n".join(lines)


def parameters_of_result(result: Mapping[str, Any]) -> str | None:
    """Return the parameters of a done job, None if its result lacks what they need.

    They are made of its receipt. The image has the same, unless its model's own scheduler config sets options.
    """
    try:
        job = job_of_result(result)
        model, digest = str(result["model"]), str(result["model_digest"])
    except (KeyError, ValidationError):
        # others may be able to write to the bucket
        return None
    width, height, scheduler = job.width, job.height, job.scheduler
    if not (width and height and scheduler):
        return None
    return parameters_text(job, width=width, height=height, scheduler=scheduler, model=model, model_digest=digest)


def _sampler(job: Job, default: str, config: Mapping[str, object]) -> dict[str, str]:
    """Return the sampler by the web UI's names; by ours if the web UI does not have it."""
    # the schedule of the model's config holds for any scheduler, its algorithm for its own
    kept = _SCHEDULE_FLAGS if job.scheduler else _SCHEDULE_FLAGS | _ALGORITHM_FLAGS
    own = schedulers.resolve(job.scheduler).options if job.scheduler else {}
    options = {**{name: value for name, value in config.items() if name in kept}, **own, **job.scheduler_options}
    found = a1111_sampler(job.scheduler or default, options)
    if found is None:
        return {"Sampler": job.scheduler or default}
    name, schedule = found
    if schedule in _NAMED_SCHEDULES:
        return {"Sampler": f"{name} {schedule}"}
    # without one, the web UI takes the sampler's favourite: Karras for DPM++ 2M
    return {"Sampler": name, "Schedule type": schedule or "Uniform"}


def _edits(job: Job) -> dict[str, str]:
    """Return the settings of an input image, a mask, ControlNets, a second stage and a refiner, and of LoRAs' starts.

    The web UI has one name for the strength of an input image and of a second stage: it never has both.
    """
    settings = {}
    if job.image is not None:
        settings["Denoising strength"] = f"{job.effective_strength:g}"
    if starts := [f"{lora.name}: {lora.start:g}" for lora in job.loras if lora.start]:
        settings["Lora starts"] = ", ".join(starts)
    if job.mask_image is not None:
        settings["Mask blur"] = str(job.mask_blur)
    for number, control in enumerate(job.controls):
        settings[f"ControlNet {number}"] = (
            f"Module: {control.preprocessor}, Model: {control.name}, Weight: {control.scale:g}, "
            f"Guidance Start: {control.start:g}, Guidance End: {control.end:g}"
        )
    if job.hires_scale is not None:
        settings.setdefault("Denoising strength", f"{job.hires_strength:g}")
        settings["Hires upscale"] = f"{job.hires_scale:g}"
        settings["Hires steps"] = str(job.hires_steps or job.num_inference_steps)
        settings["Hires upscaler"] = _UPSCALERS[job.hires_upscaler]
    if job.refiner is not None:
        settings["Refiner"] = job.refiner
        settings["Refiner switch at"] = f"{job.refiner_start:g}"
    return settings


def _prompt(job: Job, text: str) -> str:
    """Return a prompt in the web UI's syntax, such that it means there what it means here."""
    if job.prompt_syntax == "plain":
        text = _HIDDEN.sub(lambda found: f"{found[0][0]}\\{found[0][1:]}", _BRACKETS.sub(r"\\\g<0>", text))
    return text.replace(_NEGATIVE, _NEGATIVE.replace(":", "\\:"))


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:\n"') else value

"""The ``parameters`` text that AUTOMATIC1111's web UI writes into images and reads from them.

Readers take the last line as the settings, and everything before it as the prompts (web UI:
``infotext_utils.parse_generation_parameters``; sd-parsers: ``_automatic1111.py``).
"""

from __future__ import annotations

import json
import re

from latentfarm.job import Job
from latentfarm.samplers import a1111_sampler

#: schedule types that become part of a sampler's name. Before 1.9 the web UI knew them in no other form; later versions
#: and other programs read both
_NAMED_SCHEDULES = frozenset({"Karras", "Exponential"})
#: what the web UI takes for syntax: brackets are weights, and a backslash escapes
_BRACKETS = re.compile(r"[\\()\[\]]")
#: ``AND`` joins two prompts, ``BREAK`` ends a chunk, ``<lora:`` loads a network, and the number of a last ``16:9`` is
#: the prompt's weight. A backslash that escapes nothing is dropped by the web UI, and hides these from it.
_HIDDEN = re.compile(r"\bAND\b|\bBREAK\b|<(?=\w+:[^>]+>)|:(?=[-+]?(\d+\.?|\d*\.\d+)\s*\Z)")
#: where the negative prompt begins, to readers
_NEGATIVE = "Negative prompt:"


def parameters_text(job: Job, *, width: int, height: int, scheduler: str, model: str, model_digest: str) -> str:
    """Return a job's settings in the web UI's format. ``scheduler`` is the default for a job that names none."""
    settings = {
        "Steps": job.num_inference_steps,
        **_sampler(job, scheduler),
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
    settings["Job"] = job.name
    lines = [_prompt(job, job.prompt)]
    if job.negative_prompt:
        lines.append(f"{_NEGATIVE} {_prompt(job, job.negative_prompt)}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items()))
    return "\n".join(lines)


def _sampler(job: Job, default: str) -> dict[str, str]:
    """Return the sampler by the web UI's names; by ours if the web UI does not have it."""
    found = a1111_sampler(job.scheduler or default, job.scheduler_options)
    if found is None:
        return {"Sampler": job.scheduler or default}
    name, schedule = found
    if schedule in _NAMED_SCHEDULES:
        return {"Sampler": f"{name} {schedule}"}
    # without one, the web UI takes the sampler's favourite: Karras for DPM++ 2M
    return {"Sampler": name, "Schedule type": schedule or "Uniform"}


def _prompt(job: Job, text: str) -> str:
    """Return a prompt in the web UI's syntax, such that it means there what it means here."""
    if job.prompt_syntax == "plain":
        text = _HIDDEN.sub(lambda found: f"{found[0][0]}\\{found[0][1:]}", _BRACKETS.sub(r"\\\g<0>", text))
    return text.replace(_NEGATIVE, _NEGATIVE.replace(":", "\\:"))


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:\n"') else value

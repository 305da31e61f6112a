"""Estimate a submission: its rows, images, bytes and GPU time. Nothing is submitted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from pydantic import BaseModel, ConfigDict

from latentfarm.job import Row
from latentfarm.ledger import Throughput
from latentfarm.limits import MAX_TOKENS
from latentfarm.model_facts import ModelFacts, model_defaults
from latentfarm.submission.prompts import RowError
from latentfarm.submission.request import Request
from latentfarm.submission.validation import ValidationReport
from latentfarm.unique_names import UniqueNames

#: tokens that are no byte of a prompt: start, end, and those of a chat. A token is at least one byte, so a prompt of
#: fewer bytes than the limit less these is not tokenized
_EXTRA_TOKENS = 13


class Estimate(BaseModel):
    """Counts and costs of a submission.

    ``rows`` counts the rows of the source, ``duplicates`` those with the same fields as an earlier row.
    ``jobs`` counts the images of all valid rows.
    ``over_max_tokens`` counts jobs whose prompt would be cut at ``max_prompt_tokens``; None without a tokenizer.
    Prompts of syntax a1111 are not cut.
    ``num_inference_steps`` and ``guidance_scale`` are those of rows that set none: the model's own, if workers have
    announced it.
    ``size_bytes`` and ``gpu_hours`` come from measurements of the model's workers; None without any.
    ``problems`` are the messages of the first 20 invalid rows.
    ``notes`` are numbers of rows by sentence: what was mapped, dropped or chosen.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    model: str
    rows: int
    invalid: int
    reasons: dict[str, int]
    duplicates: int
    jobs: int
    max_prompt_tokens: int
    over_max_tokens: int | None
    num_inference_steps: int
    guidance_scale: float
    size_bytes: int | None
    gpu_hours: float | None
    problems: list[str]
    notes: dict[str, int]


_Size = tuple[int | None, int | None]


@dataclass
class _Sums:
    rows: int = 0
    duplicates: int = 0
    jobs: int = 0
    too_long: int = 0
    #: steps x U-Net rows, and images, by size; (None, None) is the model's native size
    work: Counter[_Size] = field(default_factory=Counter)
    images: Counter[_Size] = field(default_factory=Counter)


def make_estimate(
    request: Request, *, throughput: Throughput | None, count_tokens: Callable[[str], int] | None
) -> Estimate:
    """Read every row of a request and return the estimate.

    Args:
        request: the rows, their expansion and defaults, and what is known of the model.
        throughput: measurements of the model's workers.
        count_tokens: returns a prompt's number of tokens, start and end tokens included.
    """
    sums, report, last = _Sums(), ValidationReport(), -1
    facts = request.facts
    defaults = {**model_defaults(facts), **request.defaults.given()}
    max_tokens = facts.max_prompt_tokens if facts else MAX_TOKENS
    with UniqueNames() as seen:
        for number, row in request.rows():
            first, last = number != last, number
            sums.rows += first
            report.add(row)
            if isinstance(row, RowError):
                continue
            sums.duplicates += first and seen.add(_content(row)) is not None
            fields = {**defaults, **row.given()}
            _add(sums, fields)
            if count_tokens is not None and _is_cut(fields, count_tokens, max_tokens):
                sums.too_long += int(fields.get("num_images_per_prompt", 1))
    size_bytes, gpu_hours = _cost(sums, throughput, facts)
    return Estimate(
        source=request.source.name,
        model=request.model,
        rows=sums.rows,
        invalid=report.invalid,
        reasons=dict(report.reasons),
        duplicates=sums.duplicates,
        jobs=sums.jobs,
        max_prompt_tokens=max_tokens,
        over_max_tokens=None if count_tokens is None else sums.too_long,
        num_inference_steps=defaults["num_inference_steps"],
        guidance_scale=defaults["guidance_scale"],
        size_bytes=size_bytes,
        gpu_hours=gpu_hours,
        problems=report.problems,
        notes=request.notes,
    )


def _content(row: Row) -> str:
    # id and columns do not change the image
    return json.dumps({name: value for name, value in row.given().items() if name not in {"id", "columns"}})


def _add(sums: _Sums, fields: dict[str, Any]) -> None:
    jobs = int(fields.get("num_images_per_prompt", 1))
    start, stop = fields.get("guidance_interval", (0.0, 1.0))
    # as workers count them, also where guidance is embedded
    rows = 1 + (stop - start) * (float(fields["guidance_scale"]) > 1)
    size = (fields.get("width"), fields.get("height"))
    sums.jobs += jobs
    sums.images[size] += jobs
    sums.work[size] += jobs * int(fields["num_inference_steps"]) * rows


def _is_cut(fields: dict[str, Any], count_tokens: Callable[[str], int], max_tokens: int) -> bool:
    prompt = str(fields["prompt"])
    if fields.get("prompt_syntax") == "a1111" or len(prompt.encode()) <= max_tokens - _EXTRA_TOKENS:
        return False
    return count_tokens(prompt) > max_tokens


def _cost(sums: _Sums, throughput: Throughput | None, facts: ModelFacts | None) -> tuple[int | None, float | None]:
    """Return bytes and GPU-hours; None without measurements."""
    if throughput is None or not (throughput.images and throughput.busy_s):
        return None, None
    # if the native size is unknown, the mean size of rendered images replaces it
    mean_side = sqrt(throughput.pixels / throughput.images)
    native = (facts.native_width, facts.native_height) if facts else (mean_side, mean_side)

    def total(counts: Counter[_Size]) -> float:
        return sum((width or native[0]) * (height or native[1]) * count for (width, height), count in counts.items())

    size_bytes = total(sums.images) * throughput.size_bytes / throughput.pixels
    return round(size_bytes), total(sums.work) * throughput.busy_s / throughput.work / 3600

"""Estimate a submission: its rows, images, bytes and GPU time. Nothing is submitted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json

from latentfarm.adapter_kind import AdapterKind
from latentfarm.edit_fields import SOURCE_FIELDS, SOURCE_LIST_FIELDS
from latentfarm.job import Row
from latentfarm.ledger import Throughput
from latentfarm.limits import MAX_TOKENS
from latentfarm.model_facts import ModelFacts, model_defaults
from latentfarm.submission.draft_estimate import DraftEstimate, DraftSums, Size
from latentfarm.submission.edit_rows import count_steps
from latentfarm.submission.prompts import RowError
from latentfarm.submission.request import Request
from latentfarm.submission.shared_beginnings import Shared, SharedBeginnings
from latentfarm.submission.validation import ValidationReport
from latentfarm.unique_names import UniqueNames

#: tokens that are no byte of a prompt: start, end, and those of a chat. A token is at least one byte, so a prompt of
#: fewer bytes than the limit less these is not tokenized
_EXTRA_TOKENS = 13
_UNSEEDED = "differs only from a step on; write a seed, and its first steps are shared with other rows"


class Estimate(BaseModel):
    """Counts and costs of a submission.

    ``rows`` counts the rows of the source, ``duplicates`` those with the same fields as an earlier row.
    ``jobs`` counts the images of all valid rows.
    ``over_max_tokens`` counts jobs whose prompt would be cut at ``max_prompt_tokens``; None without a tokenizer.
    Prompts of syntax a1111 are not cut.
    ``num_inference_steps`` and ``guidance_scale`` are those of rows that set none: the model's own, if workers have
    announced it.
    ``steps`` are the denoising steps of all images: a part of them on an input image, more with a second stage.
    ``shared_steps`` are those among them that a worker makes once for several images, which begin alike.
    ``inputs`` counts different input images, ``adapters`` are the names of those that rows use, by kind.
    ``drafts`` is what drafts cost and save, None if no row stops as one; all other fields are of finished images.
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
    steps: int
    shared_steps: int
    inputs: int
    adapters: dict[str, list[str]]
    size_bytes: int | None
    gpu_hours: float | None
    drafts: DraftEstimate | None
    problems: list[str]
    notes: dict[str, int]


@dataclass
class _Sums:
    rows: int = 0
    duplicates: int = 0
    jobs: int = 0
    too_long: int = 0
    steps: int = 0
    shared_steps: int = 0
    inputs: int = 0
    drafts: DraftSums = field(default_factory=DraftSums)
    #: by kind
    adapters: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    #: steps x U-Net rows, and images, by size; (None, None) is the model's native size. An image of a second stage
    #: counts as its area, in images of the first one
    work: defaultdict[Size, float] = field(default_factory=lambda: defaultdict(float))
    images: defaultdict[Size, float] = field(default_factory=lambda: defaultdict(float))


def make_estimate(
    request: Request,
    *,
    throughput: Throughput | None,
    count_tokens: Callable[[str], int] | None,
    keep: float = 1,
) -> Estimate:
    """Read every row of a request and return the estimate.

    Args:
        request: the rows, their expansion and defaults, and what is known of the model.
        throughput: measurements of the model's workers.
        count_tokens: returns a prompt's number of tokens, start and end tokens included.
        keep: the share of the drafts that is finished, from 0 to 1.
    """
    sums, report, last = _Sums(), ValidationReport(), -1
    facts = request.facts
    defaults = {**model_defaults(facts), **request.defaults.given()}
    max_tokens = facts.max_prompt_tokens if facts else MAX_TOKENS
    flow = bool(facts and facts.flow)
    beginnings = SharedBeginnings(flow=flow, embeds_guidance=bool(facts and facts.embeds_guidance))
    with UniqueNames() as seen, UniqueNames() as sources:
        for number, row in request.rows():
            first, last = number != last, number
            sums.rows += first
            report.add(row)
            if isinstance(row, RowError):
                continue
            sums.duplicates += first and seen.add(_content(row)) is not None
            fields = {**defaults, **row.given()}
            _add(sums, fields, beginnings.add(fields), flow=flow)
            _add_inputs(sums, fields, sources)
            if count_tokens is not None and _is_cut(fields, count_tokens, max_tokens):
                sums.too_long += int(fields.get("num_images_per_prompt", 1))
    size_bytes = _count_bytes(sums, throughput, facts)
    count_hours = partial(_count_hours, throughput=throughput, facts=facts)
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
        steps=sums.steps,
        shared_steps=sums.shared_steps,
        inputs=sums.inputs,
        adapters={kind: sorted(names) for kind, names in sorted(sums.adapters.items())},
        size_bytes=size_bytes,
        gpu_hours=count_hours(sums.work),
        drafts=sums.drafts.estimate(keep, count_hours),
        problems=report.problems,
        notes={**request.notes, **({_UNSEEDED: beginnings.unseeded} if beginnings.unseeded else {})},
    )


def _content(row: Row) -> str:
    # id and columns do not change the image
    return to_json({name: value for name, value in row.given().items() if name not in {"id", "columns"}}).decode()


def _add(sums: _Sums, fields: dict[str, Any], shared: Shared, *, flow: bool) -> None:
    jobs = int(fields.get("num_images_per_prompt", 1))
    start, stop = fields.get("guidance_interval", (0.0, 1.0))
    # as workers count them, also where guidance is embedded
    rows = 1 + (stop - start) * (float(fields["guidance_scale"]) > 1)
    size = (fields.get("width"), fields.get("height"))
    made, second = count_steps(fields, flow=flow)
    area = (fields.get("hires_scale") or 1.0) ** 2
    sums.jobs += jobs
    sums.steps += jobs * (made + second)
    sums.images[size] += jobs * area
    sums.shared_steps += jobs * shared.steps
    sums.drafts.add(fields, size, (made, second), rows)
    sums.work[size] += jobs * ((made + second * area) * rows - shared.work)


def _add_inputs(sums: _Sums, fields: dict[str, Any], sources: UniqueNames) -> None:
    """Count the inputs of a row that no row before has named, and add the names of its adapters."""
    named = [*(fields.get(name) for name in SOURCE_FIELDS)]
    for name in SOURCE_LIST_FIELDS:
        named += fields.get(name) or ()
    sums.inputs += sum(source is not None and sources.add(source) is None for source in named)
    for kind, names in (
        (AdapterKind.LORA, [lora.name for lora in fields.get("loras") or ()]),
        (AdapterKind.CONTROLNET, fields.get("controlnet") or ()),
        (AdapterKind.IP_ADAPTER, fields.get("ip_adapter") or ()),
        (AdapterKind.REFINER, [fields["refiner"]] if fields.get("refiner") else ()),
    ):
        if names:
            sums.adapters[kind].update(names)


def _is_cut(fields: dict[str, Any], count_tokens: Callable[[str], int], max_tokens: int) -> bool:
    prompt = str(fields["prompt"])
    if fields.get("prompt_syntax") == "a1111" or len(prompt.encode()) <= max_tokens - _EXTRA_TOKENS:
        return False
    return count_tokens(prompt) > max_tokens


def _count_bytes(sums: _Sums, throughput: Throughput | None, facts: ModelFacts | None) -> int | None:
    """Return the bytes of all images; None without measurements."""
    if throughput is None or not (throughput.images and throughput.busy_s):
        return None
    return round(_pixels(sums.images, throughput, facts) * throughput.size_bytes / throughput.pixels)


def _count_hours(work: Mapping[Size, float], throughput: Throughput | None, facts: ModelFacts | None) -> float | None:
    """Return the GPU hours of steps x U-Net rows by size; None without measurements."""
    if throughput is None or not (throughput.images and throughput.busy_s):
        return None
    return throughput.gpu_hours(_pixels(work, throughput, facts))


def _pixels(counts: Mapping[Size, float], throughput: Throughput, facts: ModelFacts | None) -> float:
    # if the native size is unknown, the mean size of rendered images replaces it
    mean_side = sqrt(throughput.pixels / throughput.images)
    native = (facts.native_width, facts.native_height) if facts else (mean_side, mean_side)
    return sum((width or native[0]) * (height or native[1]) * count for (width, height), count in counts.items())

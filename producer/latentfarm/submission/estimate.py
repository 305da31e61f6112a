"""What a prompt file would become, before anything is submitted: rows, pictures, and what they will cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from pydantic import BaseModel, ConfigDict

from latentfarm.job import DEFAULT_GUIDANCE, DEFAULT_STEPS, MAX_TOKENS, Row
from latentfarm.ledger import Throughput
from latentfarm.submission.prompts import RowError
from latentfarm.submission.request import Request
from latentfarm.submission.validation import ValidationReport
from latentfarm.unique_names import UniqueNames

#: a token stands for at least one byte, so a shorter prompt needs no counting
_SURELY_SHORT_BYTES = 64


class Estimate(BaseModel):
    """What ``submit`` would make of a file.

    ``rows`` are those of the file, ``duplicates`` those of them that ask for the same as an earlier one, ``jobs`` the
    pictures of all good rows. ``over_77_tokens`` counts jobs whose prompt would be cut, none of syntax a1111; None
    where no tokenizer is at hand. ``size_bytes`` and ``gpu_hours`` are estimated from what the workers of the model
    have measured; None where none has rendered yet.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    model: str
    rows: int
    invalid: int
    reasons: dict[str, int]
    duplicates: int
    jobs: int
    over_77_tokens: int | None
    size_bytes: int | None
    gpu_hours: float | None
    problems: list[str]


@dataclass
class _Sums:
    rows: int = 0
    duplicates: int = 0
    jobs: int = 0
    too_long: int = 0
    #: steps x U-Net rows, and pictures, by size; (None, None) is the model's own
    work: Counter[tuple[int | None, int | None]] = field(default_factory=Counter)
    pictures: Counter[tuple[int | None, int | None]] = field(default_factory=Counter)


def make_estimate(request: Request, *, speed: Throughput | None, count_tokens: Callable[[str], int] | None) -> Estimate:
    """Read every row of a request and add up what it stands for.

    Args:
        request: what would be handed in.
        speed: what the model's workers have measured.
        count_tokens: gives a prompt's tokens, its start and its end among them.
    """
    sums, found, seen, last = _Sums(), ValidationReport(), UniqueNames(), -1
    for number, row in request.rows():
        fresh, last = number != last, number
        sums.rows += fresh
        found.add(row)
        if isinstance(row, RowError):
            continue
        if fresh and seen.add(_content(row)) is not None:
            sums.duplicates += 1
        _add(sums, {**request.defaults.given(), **row.given()}, count_tokens)
    size_bytes, gpu_hours = _cost(sums, speed)
    return Estimate(
        source=request.source.name,
        model=request.model,
        rows=sums.rows,
        invalid=found.wrong,
        reasons=dict(found.reasons),
        duplicates=sums.duplicates,
        jobs=sums.jobs,
        over_77_tokens=None if count_tokens is None else sums.too_long,
        size_bytes=size_bytes,
        gpu_hours=gpu_hours,
        problems=found.shown,
    )


def _content(row: Row) -> str:
    # the client's own name and columns do not change the picture
    return json.dumps({name: value for name, value in row.given().items() if name not in {"id", "columns"}})


def _add(sums: _Sums, fields: dict[str, Any], count_tokens: Callable[[str], int] | None) -> None:
    jobs = int(fields.get("num_images_per_prompt", 1))
    steps = int(fields.get("num_inference_steps", DEFAULT_STEPS))
    start, stop = fields.get("guidance_interval", (0.0, 1.0))
    rows = 1 + (stop - start) * (float(fields.get("guidance_scale", DEFAULT_GUIDANCE)) > 1)
    size = (fields.get("width"), fields.get("height"))
    sums.jobs += jobs
    sums.pictures[size] += jobs
    sums.work[size] += jobs * steps * rows
    prompt = str(fields["prompt"])
    if fields.get("prompt_syntax") == "a1111":
        return
    if count_tokens and len(prompt.encode()) > _SURELY_SHORT_BYTES and count_tokens(prompt) > MAX_TOKENS:
        sums.too_long += jobs


def _cost(sums: _Sums, speed: Throughput | None) -> tuple[int | None, float | None]:
    """Return bytes and GPU-hours, None where no worker has measured anything."""
    if speed is None or not (speed.images and speed.busy_s):
        return None, None
    # what the light side does not know is the model's own size: the mean of what was rendered stands for it
    own_side = sqrt(speed.pixels / speed.images)

    def total(counts: Counter[tuple[int | None, int | None]]) -> float:
        return sum((width or own_side) * (height or own_side) * count for (width, height), count in counts.items())

    size_bytes = total(sums.pictures) * speed.size_bytes / speed.pixels
    return round(size_bytes), total(sums.work) * speed.busy_s / speed.work / 3600

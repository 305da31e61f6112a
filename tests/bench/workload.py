"""The jobs of the rendering measurements: rows in diffusers' names, the same for every side."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from tests.bench.bench_submission import prompt_of

#: a job: prompt, seed, num_inference_steps, guidance_scale, perhaps width, height and scheduler
Row = dict[str, Any]

GUIDANCE, STEPS = 4.0, 20
MIXED_STEPS = (20, 30, 50)
#: of a mixed run, how many rows are rendered without guidance
UNGUIDED_SHARE = 0.25


def uniform(count: int, **more: Any) -> list[Row]:
    """Return jobs that differ in prompt and seed only; ``more`` overrides their settings."""
    same = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **more}
    return [{"prompt": prompt_of(number), "seed": number, **same} for number in range(count)]


def mixed(count: int, *, steps: Sequence[int] = MIXED_STEPS, seed: int = 0) -> list[Row]:
    """Return jobs with random steps, some without guidance, in the order in which they arrive."""
    rng = random.Random(seed)  # noqa: S311 (the same jobs in each run are what is wanted)
    rows = []
    for row in uniform(count):
        guidance = 1.0 if rng.random() < UNGUIDED_SHARE else GUIDANCE
        rows.append({**row, "num_inference_steps": rng.choice(steps), "guidance_scale": guidance})
    return rows


def arrivals(count: int, per_s: float, *, seed: int = 0) -> list[float]:
    """Return the seconds after which jobs arrive that come independently of each other, so many a second."""
    rng = random.Random(seed)  # noqa: S311 (the same times in each run are what is wanted)
    return list(accumulate(rng.expovariate(per_s) for _ in range(count)))


def unet_rows(rows: Sequence[Row]) -> int:
    """Return how many rows of the U-Net, in all steps together, the jobs need."""
    return sum(row["num_inference_steps"] * (2 if row["guidance_scale"] > 1 else 1) for row in rows)


def write_rows(file: Path, rows: Sequence[Row]) -> Path:
    """Write a prompt file of the jobs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file

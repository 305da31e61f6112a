"""Prompts and jobs that the benchmarks render: rows in diffusers' names, the same ones in every run."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

#: a job: prompt, seed, num_inference_steps, guidance_scale, optionally width, height and scheduler
Row = dict[str, Any]

GUIDANCE, STEPS = 4.0, 20
MIXED_STEPS = (20, 30, 50)
#: the share of a mixed workload that is rendered without guidance
UNGUIDED_SHARE = 0.25

_WORDS = (
    ("a photo of", "an oil painting of", "a pencil sketch of", "a watercolour of", "a film still of", "a mosaic of"),
    ("an old", "a tiny", "a crowded", "a lonely", "a golden", "a broken", "a huge", "a frozen", "a glass", "a quiet"),
    ("lighthouse", "tram", "market", "orchard", "piano", "harbour", "fox", "library", "bridge", "teapot", "robot"),
    ("at dawn", "at night", "in the rain", "in fog", "under neon light", "in deep snow", "by candlelight", "in spring"),
    ("wide angle", "close up", "from above", "in muted colours", "highly detailed", "soft focus", "isometric"),
)


def prompt_of(number: int) -> str:
    """Return a unique prompt of about 80 characters: random words and the number."""
    words = random.Random(number)  # noqa: S311 - the same prompts in every run
    subject = " ".join(words.choice(choices) for choices in _WORDS[:3])
    return f"{subject} {words.choice(_WORDS[3])}, {words.choice(_WORDS[4])}, image number {number:07d}"


def uniform(count: int, **settings: Any) -> list[Row]:
    """Return jobs that differ in prompt and seed only. ``settings`` override the defaults of all."""
    same = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **settings}
    return [{"prompt": prompt_of(number), "seed": number, **same} for number in range(count)]


def mixed(count: int, *, steps: Sequence[int] = MIXED_STEPS, seed: int = 0) -> list[Row]:
    """Return jobs with random steps, a share of them without guidance, in order of arrival."""
    rng = random.Random(seed)  # noqa: S311 - the same jobs in every run
    rows = []
    for row in uniform(count):
        guidance = 1.0 if rng.random() < UNGUIDED_SHARE else GUIDANCE
        rows.append({**row, "num_inference_steps": rng.choice(steps), "guidance_scale": guidance})
    return rows


def arrivals(count: int, per_s: float, *, seed: int = 0) -> list[float]:
    """Return the arrival times of a Poisson process, in seconds from its start."""
    rng = random.Random(seed)  # noqa: S311 - the same times in every run
    return list(accumulate(rng.expovariate(per_s) for _ in range(count)))


def unet_rows(rows: Sequence[Row]) -> int:
    """Return the number of U-Net rows that the jobs need, over all their steps."""
    return sum(row["num_inference_steps"] * (2 if row["guidance_scale"] > 1 else 1) for row in rows)


def write_rows(file: Path, rows: Sequence[Row]) -> Path:
    """Write the jobs as a JSONL prompt file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def write_jsonl(folder: Path, rows: int) -> Path:
    """Write a JSONL file whose rows have a prompt, steps and a seed. Streams, for files of a million rows."""
    file = folder / f"rows-{rows}.jsonl"
    with file.open("w") as out:
        for number in range(rows):
            row = {"prompt": prompt_of(number), "num_inference_steps": 20 + number % 11, "seed": number}
            out.write(json.dumps(row) + "\n")
    return file


def write_text(folder: Path, rows: int) -> Path:
    """Write a text file with one prompt a line."""
    file = folder / f"rows-{rows}.txt"
    with file.open("w") as out:
        out.writelines(prompt_of(number) + "\n" for number in range(rows))
    return file

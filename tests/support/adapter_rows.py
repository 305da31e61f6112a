"""Rows that use mini's adapters and input images, as a prompt file of ``latentfarm render`` and its images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tests.conftest import read_lines

from mini_training import world
from mini_training.measure import GUIDANCE, STEPS
from mini_training.measure_adapters import STRENGTH, AdapterRow

PROMPTS = "rows.jsonl"
#: the options of ``latentfarm render`` for them
OPTIONS = ("--model", "mini", "--num-inference-steps", str(STEPS), "--guidance-scale", str(GUIDANCE))


def write_rows(rows: Sequence[AdapterRow], folder: Path) -> None:
    """Write a prompt file and the images that it names into a folder."""
    lines = (json.dumps(_line(number, row, folder)) for number, row in enumerate(rows))
    (folder / PROMPTS).write_text("".join(f"{line}\n" for line in lines))


def _line(number: int, row: AdapterRow, folder: Path) -> dict[str, object]:
    line: dict[str, object] = {"prompt": row.prompt, "seed": row.seed}
    if row.lora:
        line["loras"] = row.lora
    if row.edges_of is not None:
        image = _write(folder, f"{number}-control", row.edges_of)
        line |= {"controlnet": "edges", "control_image": image, "control_preprocessor": "canny"}
    if row.image is not None:
        line["image"] = _write(folder, f"{number}-image", row.image)
    if row.mask is not None:
        line["mask_image"] = _write(folder, f"{number}-mask", row.mask)
    elif row.image is not None:
        line["strength"] = STRENGTH
    return line


def _write(folder: Path, name: str, image: world.Image) -> str:
    Image.fromarray(image).save(folder / f"{name}.png")
    return f"{name}.png"


def read_images(output: Path) -> list[world.Image]:
    """Return the images of an output folder in the order of the rows."""
    images: dict[int, world.Image] = {}
    for result in read_lines(output / "results.jsonl"):
        with Image.open(output / result["file"]) as image:
            images[result["index"]] = np.asarray(image.convert("RGB"))
    return [images[number] for number in sorted(images)]

"""diffusers' own pipeline, as all peers use it: one resident pipe, one prompt a call or static batches of them.

It is set up as diffusers' documentation advises for inference: safetensors, no safety checker, no progress bar, and
where it is compiled, channels_last and whole graphs of the U-Net and the decoder.
"""

from __future__ import annotations

import io
import time
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from tests.bench.workload import Row

from latentfarm_worker.mini import MODEL_DIR

#: how jobs become static batches; see ``batches``
Order = Literal["arrival", "split", "sorted"]


def load_pipe(source: str | Path, *, dtype: str, device: str, backend: str = "") -> Any:
    """Return a pipe that is ready to draw, compiled if torch.compile's ``backend`` is named.

    ``source`` is a diffusers folder, or empty for the bundled model.
    """
    from diffusers import StableDiffusionPipeline
    from transformers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torchvision and accelerate are not installed
        pipe = StableDiffusionPipeline.from_pretrained(
            source or MODEL_DIR,
            torch_dtype=getattr(torch, dtype),
            use_safetensors=True,
            safety_checker=None,
            local_files_only=True,
        )
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    if backend:
        for model in (pipe.unet, pipe.vae):
            model.to(memory_format=torch.channels_last)
        pipe.unet = torch.compile(pipe.unet, fullgraph=True, backend=backend)
        pipe.vae.decode = torch.compile(pipe.vae.decode, fullgraph=True, backend=backend)
    return pipe


def draw(pipe: Any, rows: Sequence[Row], *, steps: int, guidance: float) -> list[Image.Image]:
    """Call the pipe once for all rows; their own steps and guidance do not matter, their seeds do."""
    settings = {name: rows[0][name] for name in ("width", "height") if name in rows[0]}
    images: list[Image.Image] = pipe(
        [row["prompt"] for row in rows],
        num_inference_steps=steps,
        guidance_scale=guidance,
        # one generator a picture, on the CPU: so a picture does not depend on its place in the batch
        generator=[torch.Generator("cpu").manual_seed(row["seed"]) for row in rows],
        **settings,
    ).images
    return images


def draw_one(pipe: Any, row: Row) -> Image.Image:
    """Return the picture of one job: ``pipe(prompt)``."""
    return draw(pipe, [row], steps=row["num_inference_steps"], guidance=row["guidance_scale"])[0]


def png(image: Image.Image) -> bytes:
    """Return the picture as PIL encodes it by default."""
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def batches(rows: Sequence[Row], size: int, order: Order) -> Iterator[tuple[list[int], int, float]]:
    """Yield the rows' numbers, the steps and the guidance of each call.

    ``arrival``: the next ``size`` jobs, all for as long as the longest takes, guided if any is: what a batch costs that
    no job can leave. (The pictures of the shorter ones are not what was asked for; this is the time alone.)
    ``split``: the next ``size`` jobs, a call for each of their settings. ``sorted``: all jobs sorted by their settings,
    a call for each ``size`` that agree.
    """
    numbers = range(len(rows))
    if order == "sorted":
        yield from _by_settings(rows, numbers, size)
        return
    for first in range(0, len(rows), size):
        window = numbers[first : first + size]
        if order == "split":
            yield from _by_settings(rows, window, size)
        else:
            asked = [rows[number] for number in window]
            steps = max(row["num_inference_steps"] for row in asked)
            yield list(window), steps, max(row["guidance_scale"] for row in asked)


def arriving(
    rows: Sequence[Row], size: int, order: Order, arrive: Sequence[float]
) -> Iterator[tuple[list[int], int, float]]:
    """Yield the same for jobs that arrive at times of the monotonic clock: what is there by now, ``size`` at most.

    Nothing waits for a batch to fill while there is a job.
    """
    first = 0
    while first < len(rows):
        time.sleep(max(0.0, arrive[first] - time.monotonic()))
        last = min(bisect_right(arrive, time.monotonic()), first + size)
        for numbers, steps, guidance in batches(rows[first:last], size, order):
            yield [first + number for number in numbers], steps, guidance
        first = last


def _by_settings(rows: Sequence[Row], numbers: Sequence[int], size: int) -> Iterator[tuple[list[int], int, float]]:
    groups: dict[tuple[int, float], list[int]] = {}
    for number in numbers:
        row = rows[number]
        groups.setdefault((row["num_inference_steps"], row["guidance_scale"]), []).append(number)
    for (steps, guidance), group in sorted(groups.items()):
        for first in range(0, len(group), size):
            yield group[first : first + size], steps, guidance

"""diffusers' own pipeline, the peer of every benchmark: one prompt a call, or static batches.

It is set up as diffusers' documentation recommends for inference: safetensors, no safety checker, no progress bar. If
it is compiled, it also has channels_last and full graphs of the U-Net and the decoder.
"""

from __future__ import annotations

import io
import json
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
#: one call of the pipeline: the rows' numbers, the steps and the guidance
Call = tuple[list[int], int, float]


#: by pipeline, arguments of ``from_pretrained`` against what would change the images
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}


def load_pipe(source: str | Path, *, dtype: str, device: str, backend: str = "") -> Any:
    """Load a pipeline, compiled if ``backend`` names one of torch.compile's.

    ``source``: a diffusers folder, or empty for the bundled model.
    """
    import diffusers
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(source or MODEL_DIR)
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    own = _ARGUMENTS.get(kind, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torchvision and accelerate are not installed
        pipe: Any = getattr(diffusers, kind).from_pretrained(
            folder, torch_dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True, **own
        )
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    if backend:
        for part in {"unet", "transformer"} & set(pipe.components):
            # channels_last is for convolutions
            model = getattr(pipe, part).to(
                memory_format=torch.channels_last if part == "unet" else torch.preserve_format
            )
            setattr(pipe, part, torch.compile(model, fullgraph=True, backend=backend))
        pipe.vae.to(memory_format=torch.channels_last)
        pipe.vae.decode = torch.compile(pipe.vae.decode, fullgraph=True, backend=backend)
    return pipe


def render(pipe: Any, rows: Sequence[Row], *, steps: int, guidance: float) -> list[Image.Image]:
    """Call the pipeline once for all rows. Only their prompts, seeds and the first one's size are used."""
    size = {name: rows[0][name] for name in ("width", "height") if name in rows[0]}
    images: list[Image.Image] = pipe(
        [row["prompt"] for row in rows],
        num_inference_steps=steps,
        # one generator an image, on the CPU: an image does not depend on its place in the batch
        generator=[torch.Generator("cpu").manual_seed(row["seed"]) for row in rows],
        **size,
        **_guidance(pipe, guidance, len(rows)),
    ).images
    return images


def _guidance(pipe: Any, scale: float, count: int) -> dict[str, Any]:
    """Return the arguments for the guidance scale, and the length of texts for FLUX.1."""
    if type(pipe).__name__ != "FluxPipeline":
        return {"guidance_scale": scale}
    # the pipeline's default is longer than the texts that a model may have been trained with
    length = {"max_sequence_length": min(512, pipe.tokenizer_2.model_max_length)}
    if pipe.transformer.config.guidance_embeds:
        return {"guidance_scale": scale, **length}
    return {"true_cfg_scale": scale, "negative_prompt": [""] * count, **length}


def render_one(pipe: Any, row: Row) -> Image.Image:
    """Render one job: ``pipe(prompt)``."""
    return render(pipe, [row], steps=row["num_inference_steps"], guidance=row["guidance_scale"])[0]


def png(image: Image.Image) -> bytes:
    """Encode an image with PIL's default settings."""
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def batches(rows: Sequence[Row], size: int, order: Order) -> Iterator[Call]:
    """Yield the calls that render all rows in static batches of ``size``.

    ``arrival``: the next ``size`` jobs, with the steps of the longest, guided if any is. This is a lower bound of the
    time, because the images of the shorter jobs are not the requested ones. ``split``: the next ``size`` jobs, one call
    for each of their settings. ``sorted``: all jobs sorted by settings, one call for every ``size`` equal ones.
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
            batch = [rows[number] for number in window]
            steps = max(row["num_inference_steps"] for row in batch)
            yield list(window), steps, max(row["guidance_scale"] for row in batch)


def arriving_batches(rows: Sequence[Row], size: int, order: Order, arrive: Sequence[float]) -> Iterator[Call]:
    """Yield calls for jobs that arrive at times of the monotonic clock.

    A batch takes the jobs that have arrived, at most ``size``. It never waits to be filled.
    """
    first = 0
    while first < len(rows):
        time.sleep(max(0.0, arrive[first] - time.monotonic()))
        last = min(bisect_right(arrive, time.monotonic()), first + size)
        for numbers, steps, guidance in batches(rows[first:last], size, order):
            yield [first + number for number in numbers], steps, guidance
        first = last


def _by_settings(rows: Sequence[Row], numbers: Sequence[int], size: int) -> Iterator[Call]:
    groups: dict[tuple[int, float], list[int]] = {}
    for number in numbers:
        row = rows[number]
        groups.setdefault((row["num_inference_steps"], row["guidance_scale"]), []).append(number)
    for (steps, guidance), group in sorted(groups.items()):
        for first in range(0, len(group), size):
            yield group[first : first + size], steps, guidance

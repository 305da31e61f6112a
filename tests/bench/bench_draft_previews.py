"""Measure what the preview of a draft costs by the whole VAE, and what a linear map of the latents would make of it.

    python -m tests.bench.bench_draft_previews            # print the table
    python -m tests.bench.bench_draft_previews --write    # also write it into docs/explanation/benchmarks.md

With mini in CPU seconds; with the published shapes in floating point operations, which torch counts without computing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.worker_engine import load
from tests.support import sd15, sdxl
from torch.utils.flop_counter import FlopCounterMode

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.engine.latent_colors import LatentColors

#: of the steps, after which a draft stops
_SHARE = 0.3
#: guided steps of an image of the published shapes
_STEPS = 30
_PROMPTS = ("a red circle", "a blue square", "two green triangles", "a yellow star on a grey ground")


def render(engine: Engine, jobs: Sequence[Job]) -> dict[int, Rendered]:
    """Return the images, or drafts, by index."""
    for job in jobs:
        engine.admit(job)
    done = {}
    while engine.busy:
        for outcome in engine.step():
            assert isinstance(outcome, Rendered)
            done[outcome.job.index] = outcome
    return done


def cpu_s(call: Callable[[], object], rounds: int) -> float:
    """Return the median CPU seconds of a call."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return median(found)


def psnr(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Return the peak signal-to-noise ratio of two images, in dB."""
    return 10 * math.log10(255**2 / float(((one.astype(float) - other.astype(float)) ** 2).mean()))


def measure_mini(*, images: int, rounds: int) -> list[Line]:
    """Return the lines of the model in the box."""
    family = load("", dtype="float32", device="cpu")
    steps = family.recommended.steps
    fields: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": family.recommended.guidance_scale}
    jobs = [
        Job(batch="b", index=index, prompt=_PROMPTS[index % len(_PROMPTS)], seed=index, **fields)
        for index in range(images)
    ]
    engine, latents = Engine(family, slots=4), []
    engine.warm_up()
    began = time.process_time()
    finished = render(engine, jobs)
    whole_s = (time.process_time() - began) / images
    colors = LatentColors()
    for example in engine._decoder.examples:
        colors.add(example.latents, example.pixels)
    add_draft = engine._decoder.add_draft

    def keep(image: Any, estimate: torch.Tensor, columns: Mapping[int, torch.Tensor]) -> None:
        latents.append((image.job.index, estimate.clone()))
        add_draft(image, estimate, columns)

    engine._decoder.add_draft = keep  # type: ignore[method-assign]
    drafts = render(engine, [job.model_copy(update={"draft": _SHARE}) for job in jobs])
    by_vae, by_map, between = [], [], []
    for index, estimate in latents:
        small = colors.image(estimate)
        assert small is not None
        preview, image = drafts[index].decoded.numpy(), finished[index].decoded.numpy()
        enlarged = np.asarray(Image.fromarray(small).resize(image.shape[1::-1], Image.Resampling.BICUBIC))
        by_vae.append(psnr(preview, image))
        by_map.append(psnr(enlarged, image))
        between.append(psnr(enlarged, preview))
    sample = latents[0][1]
    decode_s = cpu_s(lambda: family.decode(sample[None]), rounds)
    map_s = cpu_s(lambda: colors.image(sample), rounds)
    return [
        Line(f"mini: a whole image of {steps} guided steps", 1000 * whole_s, "ms of CPU"),
        Line("mini: its decoding by the VAE", 1000 * decode_s, "ms of CPU"),
        Line("the same, of the whole image", 100 * decode_s / whole_s, "%"),
        Line(f"the same, of a draft after {_SHARE:.0%}", 100 * decode_s / (_SHARE * whole_s + decode_s), "%"),
        Line("mini: by the linear map", 1000 * map_s, "ms of CPU"),
        Line("mini: the VAE's preview against the finished image", fmean(by_vae), "dB"),
        Line("mini: the enlarged linear one against the finished image", fmean(by_map), "dB"),
        Line("mini: the enlarged linear one against the VAE's preview", fmean(between), "dB"),
    ]


def measure_shapes(name: str, models: Callable[[], dict[str, Any]], side: int, width: int, **more: int) -> list[Line]:
    """Return the lines of a published shape with latents of ``side`` and texts of ``width`` numbers a token."""
    with torch.device("meta"):
        made = models()
        latents, time_step, text = torch.empty(1, 4, side, side), torch.empty(1), torch.empty(1, 77, width)
        added = {at: torch.empty(1, size) for at, size in more.items()}
        with FlopCounterMode(display=False) as row:
            made["unet"](latents, time_step, text, added_cond_kwargs=added)
        with FlopCounterMode(display=False) as decoding:
            made["vae"].decode(latents)
    draft = _SHARE * _STEPS * 2 * row.get_total_flops()
    decode = decoding.get_total_flops()
    return [
        Line(f"{name}: a decoding by the VAE", decode / 1e12, "TFLOP"),
        Line(f"the same, of a whole image of {_STEPS} guided steps", 100 * decode / (draft / _SHARE + decode), "%"),
        Line(f"the same, of a draft after {_SHARE:.0%}", 100 * decode / (draft + decode), "%"),
    ]


def main() -> int:
    """Return 0: there are no bars."""
    arguments = parse_arguments(__doc__)
    torch.set_num_threads(1)
    conditions = Conditions()
    lines = measure_mini(images=2 if arguments.quick else 16, rounds=3 if arguments.quick else 31)
    lines += measure_shapes("SD 1.5", sd15.models, 64, 768)
    lines += measure_shapes("SDXL", sdxl.models, 128, 2048, text_embeds=1280, time_ids=6)
    return report("draft-previews", lines, conditions, write=arguments.write, note="One thread.")


if __name__ == "__main__":
    raise SystemExit(main())

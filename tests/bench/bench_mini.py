"""Measure a bundled model, mini or mini-flow, against its bars.

    PYTHONPATH=worker python -m tests.bench.bench_mini            # print mini's table
    PYTHONPATH=worker python -m tests.bench.bench_mini --write    # also write it into the model's card, mini/README.md
    PYTHONPATH=worker python -m tests.bench.bench_mini --model worker/latentfarm_worker/mini/flow/model --write

It renders about 900 images of mini, or 1300 of mini-flow, which takes minutes on two cores.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import diffusers
import numpy as np
import torch
from tests.bench.table import Conditions, Line, report

from latentfarm_worker.mini import FLOW_DIR, MODEL_DIR
from mini_training import captions, measure, world
from mini_training.export import folder_bytes

CARD = MODEL_DIR.parent / "README.md"
FLOW_CARD = FLOW_DIR.parent / "README.md"
#: steps besides the recommended ones that mini-flow is measured with
OTHER_STEPS = (4, 12, 20)


def single_lines(pipe: measure.Pipeline, count: int, guidance: float) -> list[Line]:
    """Measure images of one object, from combinations that were held out of training."""
    wanted = measure.held_out_combinations(count)
    drawn = measure.draw_prompts(pipe, measure.full_captions(wanted), guidance=guidance)
    right = measure.shares(drawn.images, wanted, measure.check_single)
    bars = {"background": 97.0, "colour": 95.0, "shape": 90.0, "place": 85.0}
    names = {"background": "background colour", "colour": "object colour"}
    held = f"right, {count} held out"
    lines = [Line(f"{names.get(k, k)} {held}", 100 * v, "%", bars.get(k), at_least=True) for k, v in right.items()]
    return [*lines, Line("CPU time per image, batched", drawn.cpu_per_image, "s", 1.5)]


def wording_lines(pipe: measure.Pipeline, guidance: float) -> list[Line]:
    """Measure Thai captions of held-out combinations, and pairs of objects."""
    wanted = measure.held_out_combinations(100, seed=1)
    thai = [measure.thai_caption(c) for c in wanted]
    right = measure.shares(
        measure.draw_prompts(pipe, thai, 20_000, guidance=guidance).images, wanted, measure.check_single
    )
    kept = ("background", "colour", "shape", "place")
    lines = [Line(f"{k} right, 100 in Thai", 100 * right[k], "%") for k in kept]
    rng = np.random.default_rng(502)
    pairs = [world.pair_scene(rng) for _ in range(100)]
    drawn = measure.draw_prompts(pipe, [captions.full_caption(p) for p in pairs], 30_000, guidance=guidance)
    both = measure.shares(drawn.images, pairs, measure.check_pair)
    return [*lines, *(Line(f"{k} right, 100 pairs", 100 * v, "%") for k, v in both.items())]


def seed_lines(pipe: measure.Pipeline, guidance: float) -> list[Line]:
    """Measure whether another seed changes the image but not its content, and the images of an empty prompt."""
    wanted = measure.held_out_combinations(40, seed=2)
    prompts = measure.full_captions(wanted)
    first = measure.draw_prompts(pipe, prompts, 40_000, guidance=guidance).images
    other = measure.draw_prompts(pipe, prompts, 50_000, guidance=guidance).images
    changed = [np.abs(a.astype(int) - b.astype(int)).max() > 8 for a, b in zip(first, other, strict=True)]
    keys = ("background", "colour", "shape")
    same = [
        all(measure.check_single(p, w)[k] for p in pair for k in keys)
        for *pair, w in zip(first, other, wanted, strict=True)
    ]
    empty = measure.draw_prompts(pipe, [""] * 40, 60_000, guidance=guidance).images
    valid = 100 * float(np.mean([measure.is_valid(image) for image in empty]))
    return [
        Line("another seed, another image (40 prompts)", 100 * float(np.mean(changed)), "%", 100.0, at_least=True),
        Line("both seeds right in colours and shape (40 prompts)", 100 * float(np.mean(same)), "%"),
        Line("empty prompt draws a valid image (40 seeds)", valid, "%"),
    ]


def vae_lines(pipe: measure.Pipeline) -> list[Line]:
    """Measure the autoencoder's reconstruction of drawn images of held-out combinations."""
    scenes = measure.scenes_of(measure.held_out_combinations(200, seed=3))
    values = measure.reconstruction_psnr(pipe.vae, [world.draw(s) for s in scenes])
    return [
        Line("VAE reconstruction, mean PSNR (200 scenes)", statistics.fmean(values), "dB", 28.0, at_least=True),
        Line("VAE reconstruction, worst PSNR", min(values), "dB"),
    ]


def flow_lines(pipe: measure.Pipeline, folder: Path, guidance: float) -> list[Line]:
    """Measure what mini-flow alone promises: its size, its time next to mini's, and other numbers of steps."""
    combinations = measure.held_out_combinations(100, seed=5)
    prompts = measure.full_captions(combinations)
    # one after the other, so that both meet the same machine
    own, minis = [], []
    mini = measure.load_pipeline()
    for first in range(0, 60, measure.BATCH):
        some = prompts[first : first + measure.BATCH]
        own.append(measure.draw_prompts(pipe, some, guidance=guidance).cpu_per_image)
        minis.append(measure.draw_prompts(mini, some).cpu_per_image)
    lines = [
        Line("size of the folder", folder_bytes(folder) / 1e6, "MB", 8.0),
        Line("CPU time per image, batches of 20", statistics.median(own), "s"),
        Line("the same of mini, 25 steps, in the same run", statistics.median(minis), "s"),
    ]
    for steps in OTHER_STEPS:
        drawn = measure.draw_prompts(pipe, prompts, 70_000, steps=steps, guidance=guidance)
        right = measure.shares(drawn.images, combinations, measure.check_single)
        lines += [Line(f"{k} right, {steps} steps, 100 held out", 100 * right[k], "%") for k in ("shape", "all")]
    return lines


def main() -> int:
    """Return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--count", type=int, default=500, help="held-out combinations to render [default: 500]")
    parser.add_argument("--guidance", type=float, help="guidance scale [default: the card's]")
    parser.add_argument("--quick", action="store_true", help="measure only images of one object")
    parser.add_argument("--write", action="store_true", help="write the table into the model's card")
    options = parser.parse_args()
    conditions = Conditions()
    pipe = measure.load_any(options.model)
    steps, usual = measure.recommended(pipe)
    guidance = usual if options.guidance is None else options.guidance
    flows = isinstance(pipe, diffusers.FluxPipeline)
    lines = single_lines(pipe, options.count, guidance)
    if not options.quick:
        # mini-flow's autoencoder is mini's
        lines += [] if flows else vae_lines(pipe)
        lines += [*wording_lines(pipe, guidance), *seed_lines(pipe, guidance)]
        lines += flow_lines(pipe, options.model, guidance) if flows else []
    note = (
        f"{steps} steps, guidance {guidance:g}, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}."
    )
    name, card = ("bench:mini-flow", FLOW_CARD) if flows else ("bench:mini", CARD)
    return report(name, lines, conditions, write=options.write, note=note, page=card)


if __name__ == "__main__":
    raise SystemExit(main())

"""Measures the bundled model against its bars and, asked to, writes the table into its card.

    python tests/bench/bench_mini.py            # prints the table
    python tests/bench/bench_mini.py --write    # and puts it into mini/README.md

It draws some 900 images: minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch

from latentfarm_worker.mini import MODEL_DIR
from mini_training import captions, measure, world

CARD = MODEL_DIR.parent / "README.md"
BEGIN, END = "<!-- bench:mini -->", "<!-- /bench:mini -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; ``bar`` is none where the figure is only reported."""

    what: str
    figure: float
    unit: str = "%"
    bar: float | None = None
    at_least: bool = True

    @property
    def passed(self) -> bool:
        """Whether the figure meets its bar."""
        if self.bar is None:
            return True
        return self.figure >= self.bar if self.at_least else self.figure <= self.bar

    def line(self) -> str:
        """The row in Markdown."""
        bar = "" if self.bar is None else f"{'≥' if self.at_least else '≤'} {self.bar:g} {self.unit}"
        met = "" if self.bar is None else ("yes" if self.passed else "**no**")
        return f"| {self.what} | {self.figure:.2f} {self.unit} | {bar} | {met} |"


def single_rows(pipe: diffusers.StableDiffusionPipeline, count: int, guidance: float) -> list[Row]:
    """The bars on images of one object, from combinations never trained on."""
    wanted = measure.held_out_combinations(count)
    drawn = measure.draw_prompts(pipe, measure.full_captions(wanted), guidance=guidance)
    right = measure.shares(drawn.images, wanted, measure.check_single)
    bars = {"background": 97.0, "colour": 95.0, "shape": 90.0, "place": 85.0}
    names = {"background": "background colour", "colour": "object colour"}
    held = f"right, {count} held out"
    rows = [Row(f"{names.get(k, k)} {held}", 100 * v, bar=bars.get(k)) for k, v in right.items()]
    return [*rows, Row("CPU time per image, batched", drawn.cpu_per_image, "s", 1.5, at_least=False)]


def wording_rows(pipe: diffusers.StableDiffusionPipeline, guidance: float) -> list[Row]:
    """Thai captions of held-out combinations, and pairs of objects."""
    wanted = measure.held_out_combinations(100, seed=1)
    thai = [measure.thai_caption(c) for c in wanted]
    right = measure.shares(
        measure.draw_prompts(pipe, thai, 20_000, guidance=guidance).images, wanted, measure.check_single
    )
    kept = ("background", "colour", "shape", "place")
    rows = [Row(f"{k} right, 100 in Thai", 100 * right[k]) for k in kept]
    rng = np.random.default_rng(502)
    pairs = [world.pair_scene(rng) for _ in range(100)]
    drawn = measure.draw_prompts(pipe, [captions.full_caption(p) for p in pairs], 30_000, guidance=guidance)
    both = measure.shares(drawn.images, pairs, measure.check_pair)
    return [*rows, *(Row(f"{k} right, 100 pairs", 100 * v) for k, v in both.items())]


def seed_rows(pipe: diffusers.StableDiffusionPipeline, guidance: float) -> list[Row]:
    """Another seed draws the same content differently; an empty prompt draws something valid."""
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
        Row("another seed, another image (40 prompts)", 100 * float(np.mean(changed)), bar=100.0),
        Row("both seeds right in colours and shape (40 prompts)", 100 * float(np.mean(same))),
        Row("empty prompt draws a valid image (40 seeds)", valid),
    ]


def vae_rows(pipe: diffusers.StableDiffusionPipeline) -> list[Row]:
    """How well the autoencoder rebuilds drawn images of held-out combinations."""
    scenes = measure.scenes_of(measure.held_out_combinations(200, seed=3))
    values = measure.reconstruction_psnr(pipe.vae, [world.draw(s) for s in scenes])
    return [
        Row("VAE reconstruction, mean PSNR (200 scenes)", statistics.fmean(values), "dB", 28.0),
        Row("VAE reconstruction, worst PSNR", min(values), "dB"),
    ]


def table(rows: list[Row], guidance: float) -> str:
    """The table, and what it was measured with."""
    lines = ["| measured | figure | bar | met |", "| --- | --- | --- | --- |", *(r.line() for r in rows)]
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    how = f"{measure.STEPS} steps, guidance {guidance:g}, {torch.get_num_threads()} threads; {versions}."
    return "\n".join([*lines, "", how])


def write_card(text: str, card: Path = CARD) -> None:
    """Puts the table between the card's markers."""
    old = card.read_text(encoding="utf-8")
    head, rest = old.split(BEGIN)
    tail = rest.split(END)[1]
    card.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


def main() -> int:
    """Returns 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--count", type=int, default=500, help="held-out combinations to draw")
    parser.add_argument("--guidance", type=float, default=measure.GUIDANCE)
    parser.add_argument("--quick", action="store_true", help="only the bars on single objects")
    parser.add_argument("--write", action="store_true", help="write the table into the model card")
    args = parser.parse_args()
    pipe = measure.load_pipeline(args.model)
    rows = single_rows(pipe, args.count, args.guidance)
    if not args.quick:
        rows += [*vae_rows(pipe), *wording_rows(pipe, args.guidance), *seed_rows(pipe, args.guidance)]
    text = table(rows, args.guidance)
    print(text)
    print(json.dumps({r.what: r.figure for r in rows}))
    if args.write:
        write_card(text)
    return 0 if all(r.passed for r in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

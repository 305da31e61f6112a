"""Measure the adapters of mini, and images that begin with an image, against their bars.

    PYTHONPATH=worker python -m tests.bench.bench_mini_adapters              # print the table
    PYTHONPATH=worker python -m tests.bench.bench_mini_adapters --write      # also write it into the adapters' page
    PYTHONPATH=worker python -m tests.bench.bench_mini_adapters --diffusers  # by diffusers' pipelines, less inpainting

All rows are one batch of ``latentfarm render``, in which each kind is beside all others.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image
from tests.bench.table import Conditions, Line, report
from tests.support.adapter_rows import OPTIONS, PROMPTS, read_images, write_rows

from latentfarm_worker.mini import ADAPTERS_DIR
from mini_training import measure_adapters as measured
from mini_training import world
from mini_training.adapter_judge import is_outlined, is_striped
from mini_training.export import folder_bytes
from mini_training.measure import GUIDANCE, STEPS
from mini_training.measure_adapters import FIGURES, STRENGTH, AdapterRow

PAGE = ADAPTERS_DIR / "README.md"


def rows_of(count: int, *, inpaint: bool) -> list[AdapterRow]:
    """Return ``count`` rows of each kind, the kinds mixed."""
    kinds = [measured.style_rows, measured.edge_rows, measured.nested_rows, measured.image_rows]
    rows = [row for make in (*kinds, *([measured.inpaint_rows] if inpaint else [])) for row in make(count)]
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[number] for number in order]


def draw_by_farm(rows: Sequence[AdapterRow], folder: Path) -> list[world.Image]:
    """Return the images of rows, all of them one batch of ``latentfarm render``."""
    write_rows(rows, folder)
    command = [sys.executable, "-m", "latentfarm", "render", PROMPTS, "-o", "out", *OPTIONS]
    subprocess.run(command, cwd=folder, check=True)
    return read_images(folder / "out")


def lines_of(rows: Sequence[AdapterRow], images: Sequence[world.Image]) -> list[Line]:
    """Return the table."""
    pairs = list(zip(rows, images, strict=True))

    def of(kind: str, figure: Callable[[world.Image, AdapterRow], float] | None = None) -> list[float]:
        return [float((figure or FIGURES[kind])(image, row)) for row, image in pairs if row.kind == kind]

    def share(kind: str, figure: Callable[[world.Image, AdapterRow], float] | None = None) -> float:
        return 100 * statistics.fmean(of(kind, figure))

    count = len(of("outlined"))
    lines = [
        Line(f"outlined with the LoRA `outlined`, {count} held out", share("outlined"), "%", 90, at_least=True),
        Line("outlined without a LoRA, same prompts", share("plain", lambda i, _: is_outlined(i)), "%", 5),
        Line(f"striped with the LoRA `striped`, {count} held out", share("striped"), "%", 90, at_least=True),
        Line("striped without a LoRA, same prompts", share("plain", lambda i, _: is_striped(i)), "%", 5),
        Line("overlap of edges with `edges`, mean", statistics.fmean(of("edges")), "", 0.8, at_least=True),
        Line("overlap of edges without it, same prompts", statistics.fmean(of("no edges"))),
        Line("overlap of edges with `edges`, any place and angle", statistics.fmean(of("free edges"))),
        Line("nested with `<nested>`", share("nested"), "%", 50, at_least=True),
        Line("nested without it, same prompts", share("not nested"), "%", 5),
        Line(f"img2img of strength {STRENGTH:g} keeps place and colours", share("img2img"), "%", 90, at_least=True),
    ]
    if any(row.kind == "inpaint" for row in rows):
        lines.append(Line("inpaint: largest change of what is kept, of 255", max(of("inpaint")), "", 2))
    return [*lines, *_sizes()]


def _sizes() -> list[Line]:
    """Return the size of each adapter."""
    files = {path.stem: path.stat().st_size for path in sorted(ADAPTERS_DIR.glob("*.safetensors"))}
    sizes = files | {"edges": folder_bytes(ADAPTERS_DIR / "edges")}
    return [Line(f"size of `{name}`", size / 2**20, "MiB", 1) for name, size in sizes.items()]


def main() -> int:
    """Return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=100, help="rows of each kind [default: 100]")
    parser.add_argument("--diffusers", action="store_true", help="draw by diffusers' own pipelines")
    parser.add_argument("--images", type=Path, help="a folder for sheets of the images")
    parser.add_argument("--write", action="store_true", help="write the table into the adapters' page")
    options = parser.parse_args()
    conditions = Conditions()
    rows = rows_of(options.count, inpaint=not options.diffusers)
    if options.diffusers:
        images = measured.draw_by_diffusers(rows)
    else:
        with tempfile.TemporaryDirectory() as folder:
            images = draw_by_farm(rows, Path(folder))
    if options.images:
        write_sheets(rows, images, options.images)
    by = "diffusers' pipelines" if options.diffusers else "one batch of `latentfarm render`"
    note = (
        f"{len(rows)} images by {by}, {STEPS} steps, guidance {GUIDANCE:g}; torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}."
    )
    lines = lines_of(rows, images)
    return report("bench:mini-adapters", lines, conditions, write=options.write, note=note, page=PAGE)


def write_sheets(rows: Sequence[AdapterRow], images: Sequence[world.Image], folder: Path) -> None:
    """Write a sheet of at most 60 images for each kind, as its rows follow each other by seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in {row.kind for row in rows}:
        seeds = sorted((row.seed, number) for number, row in enumerate(rows) if row.kind == kind)[:60]
        shown = [images[number] for _seed, number in seeds]
        blank = np.zeros_like(shown[0])
        lines = [[*shown[at : at + 10], *[blank] * 10][:10] for at in range(0, len(shown), 10)]
        sheet = np.concatenate([np.concatenate(line, axis=1) for line in lines], axis=0)
        Image.fromarray(sheet).save(folder / f"{kind.replace(' ', '-')}.png")


if __name__ == "__main__":
    raise SystemExit(main())

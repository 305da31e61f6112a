"""Measure a GPU with the shapes of Stable Diffusion 1.5 and random weights: 512 x 512, 20 Euler steps, guidance.

    python -m tests.bench.gpu                        # within ten minutes; print the table
    python -m tests.bench.gpu --write                # also write it into docs/explanation/benchmarks.md
    python -m tests.bench.gpu --device cpu --tiny    # only check the script, with a tiny model

A measurement that cannot run here (no Redis, no S3 server, no time) is left out, with a message.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tests.bench.bench_start import diffusers_start_s, latentfarm_start_s
from tests.bench.comparison import CORES, largest_difference
from tests.bench.end_to_end import celery_workers, latentfarm_workers
from tests.bench.render_processes import Kind, ModelSource, RenderProcesses, Run
from tests.bench.servers import farm_servers, redis_server, temporary_folder
from tests.bench.table import Conditions, Line, report
from tests.bench.workload import GUIDANCE, MIXED_STEPS, mixed, uniform
from tests.support import sd15
from tests.support.tiny import make_tiny

from latentfarm.errors import LatentfarmError
from latentfarm.settings import Settings


@dataclass
class Bench:
    """The options of a run, and its results so far."""

    model: ModelSource
    folder: Path
    ends: float
    tiny: bool
    rounds: int
    #: TFLOP/s of a large matrix product
    matmul: float = 0.0
    #: the static batch size that renders fastest
    batch_size: int = 0
    lines: list[Line] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    settings: Settings | None = None

    def count(self, jobs: int) -> int:
        """Return the number of jobs to render: ``jobs``, or 4 of the tiny model."""
        return 4 if self.tiny else jobs

    @property
    def job_settings(self) -> dict[str, int]:
        """Return settings that override those of the jobs."""
        return {"num_inference_steps": 2} if self.tiny else {}

    @property
    def processes(self) -> int:
        """Return the number of workers: one on a GPU, one for each core on a CPU, so that threads do not contend."""
        return CORES if self.model.device == "cpu" else 1

    @property
    def backend(self) -> str:
        """Return torch.compile's backend. The one for the tiny model only traces."""
        return "aot_eager" if self.tiny else "inductor"

    @property
    def mixed_steps(self) -> tuple[int, ...]:
        return (1, 2, 3) if self.tiny else MIXED_STEPS

    def add(self, *lines: Line) -> None:
        """Add lines to the table and print them at once, so that an interrupted run has shown its results."""
        self.lines.extend(lines)
        for line in lines:
            print(line.markdown(), flush=True)

    def renderer(self, kind: Kind, **options: Any) -> RenderProcesses:
        """Start a process that renders in memory. ``options`` override fields of the model source."""
        threads = max(1, CORES // self.processes)
        return RenderProcesses(kind, replace(self.model, **options), threads=threads, log=self.folder / f"{kind}.log")


def matmul_rate(bench: Bench) -> None:
    """Measure the rate of bfloat16 products of 8192 x 8192 random matrices."""
    device, side = torch.device(bench.model.device), 128 if bench.tiny else 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    taken = []
    for turn in range(23):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= 3:
            taken.append(time.perf_counter() - began)
    bench.matmul = 2 * side**3 / median(taken) / 1e12
    bench.add(Line(f"bfloat16 product of {side} x {side} matrices, median of 20", bench.matmul, "TFLOP/s"))


def slot_counts(bench: Bench) -> None:
    """Measure the engine alone for several numbers of slots."""
    with bench.renderer("engine") as engine:
        for slots in (2, 4) if bench.tiny else (8, 16, 32, 64):
            rows = uniform(bench.count(2 * slots), **bench.job_settings)
            engine.run(uniform(slots, num_inference_steps=2), slots=slots)
            bench.add(Line(f"engine alone, {slots} slots", engine.run(rows, slots=slots).images_per_s, "images/s"))


def exactness(bench: Bench) -> None:
    """Compare the bytes of jobs rendered alone and together with others."""
    rows = mixed(bench.count(12), steps=bench.mixed_steps)
    with bench.renderer("engine") as engine:
        together = engine.digests(rows)
        alone = [engine.digests([row])[0] for row in rows[:4]]
    same = sum(one == other for one, other in zip(together, alone, strict=False))
    bench.add(Line("jobs with the same bytes alone and together", 100 * same / len(alone), "%", 100, at_least=True))


def static_batches(bench: Bench) -> None:
    """Find the compiled static batch size that renders fastest."""
    rates: dict[int, float] = {}
    for size in (2,) if bench.tiny else (8, 16, 32):
        if rates and bench.ends - time.monotonic() < 240:
            bench.left_out.append(f"static batches of {size}: no time")
            continue
        try:
            with bench.renderer("diffusers", backend=bench.backend) as diffusers:
                diffusers.run(uniform(size, num_inference_steps=2), size=size)
                rows = uniform(bench.count(2 * size), **bench.job_settings)
                rates[size] = diffusers.run(rows, size=size).images_per_s
        except RuntimeError as error:
            bench.left_out.append(f"static batches of {size}: {str(error).splitlines()[-1]}")
            continue
        bench.add(Line(f"diffusers compiled, channels_last, `pipe(list)` of {size}", rates[size], "images/s"))
    bench.batch_size = max(rates, key=rates.__getitem__)


@contextmanager
def all_renderers(bench: Bench) -> Iterator[dict[str, Any]]:
    """Start all renderers, warm them up and yield them by name."""
    assert bench.settings is not None
    settings, count, folder, device = bench.settings, bench.processes, bench.folder, bench.model.device
    with ExitStack() as stack:
        start: Callable[[Any], Any] = stack.enter_context
        celery_redis = start(redis_server(folder / "celery-redis"))
        renderers = {
            "latentfarm": start(latentfarm_workers(settings, count, folder / "latentfarm")),
            "celery": start(celery_workers(settings, celery_redis, count, folder / "celery", device=device)),
            "diffusers": start(bench.renderer("diffusers", backend=bench.backend)),
            "engine": start(bench.renderer("engine")),
        }
        for name, renderer in renderers.items():
            options = {"size": bench.batch_size} if name == "diffusers" else {}
            renderer.run(uniform(2, num_inference_steps=2), **options)
        yield renderers


def end_to_end(bench: Bench, renderers: dict[str, Any]) -> None:
    """Render the same jobs with every renderer in turn, from queue to object and state, and compare one image."""
    rows, few = uniform(bench.count(128), **bench.job_settings), uniform(bench.count(16), **bench.job_settings)
    runs: dict[str, list[Run]] = {name: [] for name in renderers}
    for _ in range(bench.rounds):
        runs["latentfarm"].append(renderers["latentfarm"].run(rows))
        runs["engine"].append(renderers["engine"].run(rows))
        runs["diffusers"].append(renderers["diffusers"].run(rows, size=bench.batch_size))
        runs["celery"].append(renderers["celery"].run(few))
    rate = {name: median(run.images_per_s for run in each) for name, each in runs.items()}
    ours, slots = rate["latentfarm"], renderers["latentfarm"].slots()
    bench.add(
        Line(f"plain Celery worker, queue to object and state, median of {bench.rounds}", rate["celery"], "images/s"),
        Line(f"diffusers compiled, `pipe(list)` of {bench.batch_size}", rate["diffusers"], "images/s"),
        Line("latentfarm's engine alone", rate["engine"], "images/s"),
        Line(f"latentfarm, {slots} slots, queue to object and state", ours, "images/s"),
        Line("latentfarm against the plain Celery worker", ours / rate["celery"], "times", 4, at_least=True),
        Line("latentfarm, end to end, against `pipe(list)` alone", ours / rate["diffusers"], "times", 1, at_least=True),
        Line("latentfarm, end to end, against its engine alone", ours / rate["engine"], "", 0.97, at_least=True),
    )
    if not bench.tiny:
        effective = ours * sd15.TFLOP
        bench.add(
            Line(f"latentfarm, {sd15.TFLOP} TFLOP an image", effective, "TFLOP/s"),
            Line("share of the rate of a large product", effective / bench.matmul, "", 0.45, at_least=True),
        )
    files = [renderers[name].save(few[0], bench.folder / f"{name}.png") for name in ("latentfarm", "celery")]
    # no bar in 16 bits: random weights magnify every rounding
    label, bar = "one seed: largest difference between the renderers", 1 if bench.tiny else None
    bench.add(Line(label, largest_difference(*files), "of 255", bar))


def mixed_jobs(bench: Bench, renderers: dict[str, Any]) -> None:
    """Render jobs of mixed steps and guidance: latentfarm from queue to object, static batches in memory."""
    rows, diffusers = mixed(bench.count(96), steps=bench.mixed_steps), renderers["diffusers"]
    # compiles the shape of a batch without guidance
    diffusers.run(uniform(bench.batch_size, num_inference_steps=2, guidance_scale=1.0), size=bench.batch_size)
    latentfarm = renderers["latentfarm"].run(rows)
    arrival = diffusers.run(rows, size=bench.batch_size, order="arrival")
    by_settings = diffusers.run(rows, size=bench.batch_size, order="sorted")
    bench.add(
        Line("mixed jobs: latentfarm, queue to object and state", latentfarm.images_per_s, "images/s"),
        Line("mixed jobs: static batches in arrival order", arrival.images_per_s, "images/s"),
        Line("mixed jobs: static batches sorted by settings", by_settings.images_per_s, "images/s"),
        Line("mixed jobs: against arrival order", arrival.wall_s / latentfarm.wall_s, "times", 1.4, at_least=True),
        Line("mixed jobs: against sorted", by_settings.wall_s / latentfarm.wall_s, "times", 1, at_least=True),
        Line("mixed jobs: p99 time of a job against arrival order", latentfarm.p99_s / arrival.p99_s, "", 0.5),
    )


def start(bench: Bench) -> None:
    """Measure a worker's second start, against diffusers' load and first call."""
    assert bench.settings is not None
    settings = bench.settings
    diffusers_start_s(settings, device=bench.model.device)
    latentfarm_start_s(settings, bench.folder, 1, **bench.job_settings)
    diffusers = diffusers_start_s(settings, device=bench.model.device)
    latentfarm = latentfarm_start_s(settings, bench.folder, 1, **bench.job_settings)
    bench.add(
        Line("diffusers: load, first call, PNG, put", diffusers, "s"),
        Line("latentfarm: start to the first commit, a job waiting", latentfarm, "s"),
        Line("start, against diffusers", latentfarm / diffusers, "times", 1.2),
    )


def attempt(bench: Bench, needs_s: float, measurement: Callable[..., None], *arguments: Any) -> None:
    """Take a measurement if there is time. If it fails, record why and continue."""
    name = measurement.__name__.replace("_", " ")
    print(f"-- {name}", flush=True)
    if bench.ends - time.monotonic() < needs_s:
        bench.left_out.append(f"{name}: no time")
        return
    try:
        measurement(bench, *arguments)
    except (LatentfarmError, RuntimeError, ImportError, OSError) as error:
        bench.left_out.append(f"{name}: {error}")


def measure(bench: Bench) -> None:
    """Take every measurement, the most important first."""
    attempt(bench, 0, matmul_rate)
    attempt(bench, 60, exactness)
    attempt(bench, 60, static_batches)
    try:
        with farm_servers(bench.folder / "farm") as servers:
            update = {"model": "sd15", "model_source": bench.model.source, "dtype": bench.model.dtype}
            bench.settings = servers.model_copy(update=update)
            with all_renderers(bench) as renderers:
                attempt(bench, 60, end_to_end, renderers)
                attempt(bench, 60, mixed_jobs, renderers)
            attempt(bench, 60, start)
    except (LatentfarmError, RuntimeError, ImportError, OSError) as error:
        bench.left_out.append(f"measurements with a Redis, an S3 server or workers: {error}")
    attempt(bench, 60, slot_counts)


class DeviceConditions(Conditions):
    """The conditions of a measurement of a device."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self._bench = bench

    def markdown(self) -> str:
        """Return a sentence about the device, and the measurements that were left out."""
        model, name = self._bench.model, "the CPU, a tiny model: a check of the script only"
        if model.device == "cuda":
            memory = torch.cuda.get_device_properties(0).total_memory / 2**30
            name = f"{torch.cuda.get_device_name(0)} ({memory:.0f} GiB), CUDA {torch.version.cuda}"
        versions = ", ".join(f"{each} {version(each)}" for each in ("torch", "diffusers", "transformers"))
        text = (
            f"{datetime.now(UTC):%Y-%m-%d}, {name}; {versions}; {model.dtype}, the scheduler Euler, guidance "
            f"{GUIDANCE:g}, 20 steps if not stated otherwise, 512 x 512 pixels, seeds from 0 on."
        )
        return "\n".join([text, *(f"\nLeft out: {each}" for each in self._bench.left_out)])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--tiny", action="store_true", help="only check the script, with a tiny model and few jobs")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="a measurement that does not fit is left out [default: 9.5]"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the table into docs/explanation/benchmarks.md")
    return parser.parse_args()


def main() -> int:
    """Return 1 if a bar is missed, 0 if there is no device, 2 for options that do not fit."""
    options = parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing is measured (--device cpu --tiny checks the script)")
        return 0
    if options.device == "cpu" and not options.tiny:
        print("a CPU takes minutes for each image of this model; add --tiny", file=sys.stderr)
        return 2
    ends = time.monotonic() + 60 * options.minutes
    with temporary_folder() as folder:
        dtype = "float32" if options.tiny else options.dtype
        model = ModelSource(source=str(folder / "model"), dtype=dtype, device=options.device)
        bench = Bench(model, folder, ends, options.tiny, 1 if options.tiny else options.rounds)
        conditions = DeviceConditions(bench)
        if options.tiny:
            # on a busy machine, threads wait for each other
            torch.set_num_threads(1)
            sd15.use_euler(make_tiny(folder / "model"))
        else:
            sd15.write_sd15(folder / "model", dtype=getattr(torch, dtype), device=options.device)
            torch.cuda.empty_cache()
        measure(bench)
        return report("gpu", bench.lines, conditions, write=options.write)


if __name__ == "__main__":
    raise SystemExit(main())

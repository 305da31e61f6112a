"""Measures a GPU with the shapes of Stable Diffusion 1.5 and random weights: 512 x 512, 20 Euler steps, guidance.

    python -m tests.bench.gpu                        # within ten minutes; prints the table
    python -m tests.bench.gpu --write                # and puts it into docs/explanation/benchmarks.md
    python -m tests.bench.gpu --device cpu --tiny    # runs through all of it with a tiny model, which measures nothing

What cannot run here (no Redis or S3 server to be had, no time left) is left out, with a message.
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
from tests.bench.bench_start import our_start_s, peer_start_s
from tests.bench.bench_throughput import CORES, furthest_apart
from tests.bench.end_to_end import our_workers, stock_workers
from tests.bench.in_process import InProcess, Load, Run
from tests.bench.servers import farm_servers, redis_server, temporary_folder
from tests.bench.table import Conditions, Line, report
from tests.bench.workload import GUIDANCE, MIXED_STEPS, mixed, uniform
from tests.support import sd15
from tests.support.tiny import make_tiny

from latentfarm.errors import LatentfarmError
from latentfarm.settings import Settings


@dataclass
class Bench:
    """What is measured, and what was found so far."""

    load: Load
    folder: Path
    ends: float
    tiny: bool
    rounds: int
    #: TFLOP/s of a large matrix product; of the tiny model nothing is said in these
    matmul: float = 0.0
    #: the static batch that renders most, the engine's images a second, the best of the peers'
    size: int = 0
    lines: list[Line] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    settings: Settings | None = None

    def count(self, jobs: int) -> int:
        """Return how many jobs to render."""
        return 4 if self.tiny else jobs

    @property
    def steps(self) -> dict[str, int]:
        """What the tiny model's jobs are told beyond their own settings."""
        return {"num_inference_steps": 2} if self.tiny else {}

    @property
    def processes(self) -> int:
        """How many workers share the device; on a CPU one for each core, so that no threads wait for each other."""
        return CORES if self.load.device == "cpu" else 1

    @property
    def backend(self) -> str:
        """torch.compile's: the default, but for the tiny model one that traces and generates no code."""
        return "aot_eager" if self.tiny else "inductor"

    @property
    def mixed_steps(self) -> tuple[int, ...]:
        """The steps of mixed jobs."""
        return (1, 2, 3) if self.tiny else MIXED_STEPS

    def add(self, *lines: Line) -> None:
        """Keep lines of the table, and show them: a run that is cut short has told what it found."""
        self.lines.extend(lines)
        for line in lines:
            print(line.markdown(), flush=True)

    def side(self, kind: Any, **more: Any) -> InProcess:
        """Return a process that renders in memory."""
        return InProcess(
            kind, replace(self.load, **more), threads=max(1, CORES // self.processes), log=self.folder / f"{kind}.log"
        )


def matmul_rate(bench: Bench) -> None:
    """Measure the rate of bfloat16 products of 8192 x 8192 random matrices."""
    device, side = torch.device(bench.load.device), 128 if bench.tiny else 8192
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


def by_slots(bench: Bench) -> None:
    """Measure the engine alone for several numbers of slots."""
    with bench.side("engine") as engine:
        for slots in (2, 4) if bench.tiny else (8, 16, 32, 64):
            rows = uniform(bench.count(2 * slots), **bench.steps)
            engine.run(uniform(slots, num_inference_steps=2), slots=slots)
            bench.add(Line(f"engine alone, {slots} slots", engine.run(rows, slots=slots).images_per_s, "images/s"))


def exactness(bench: Bench) -> None:
    """Compare the bytes of jobs that ran alone with those that ran in company."""
    rows = mixed(bench.count(12), steps=bench.mixed_steps)
    with bench.side("engine") as engine:
        company = engine.digests(rows)
        alone = [engine.digests([row])[0] for row in rows[:4]]
    same = sum(one == other for one, other in zip(company, alone, strict=False))
    bench.add(Line("jobs with the same bytes alone and in company", 100 * same / len(alone), "%", 100, at_least=True))


def by_batch(bench: Bench) -> None:
    """Find the compiled static batch that renders most."""
    rates: dict[int, float] = {}
    for size in (2,) if bench.tiny else (8, 16, 32):
        if rates and bench.ends - time.monotonic() < 240:
            bench.left_out.append(f"static batches of {size}: no time")
            continue
        try:
            with bench.side("pipe", backend=bench.backend) as pipe:
                pipe.run(uniform(size, num_inference_steps=2), size=size)
                rates[size] = pipe.run(uniform(bench.count(2 * size), **bench.steps), size=size).images_per_s
        except RuntimeError as error:
            bench.left_out.append(f"static batches of {size}: {str(error).splitlines()[-1]}")
            continue
        bench.add(Line(f"diffusers compiled, channels_last, `pipe(list)` of {size}", rates[size], "images/s"))
    bench.size = max(rates, key=rates.__getitem__)


@contextmanager
def all_sides(bench: Bench) -> Iterator[dict[str, Any]]:
    """Give the sides of the comparisons, warm."""
    assert bench.settings is not None
    with ExitStack() as stack:
        peer_redis = stack.enter_context(redis_server(bench.folder / "peer"))
        ours = stack.enter_context(our_workers(bench.settings, bench.processes, bench.folder / "ours"))
        stock = stack.enter_context(
            stock_workers(bench.settings, peer_redis, bench.processes, bench.folder / "stock", device=bench.load.device)
        )
        pipe = stack.enter_context(bench.side("pipe", backend=bench.backend))
        engine = stack.enter_context(bench.side("engine"))
        for side, how in ((ours, {}), (stock, {}), (pipe, {"size": bench.size}), (engine, {})):
            side.run(uniform(2, num_inference_steps=2), **how)
        yield {"ours": ours, "stock": stock, "pipe": pipe, "engine": engine}


def end_to_end(bench: Bench, sides: dict[str, Any]) -> None:
    """Render the same jobs with every side in turn, from queue to object and state; then look at a picture."""
    rows, few = uniform(bench.count(128), **bench.steps), uniform(bench.count(16), **bench.steps)
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in range(bench.rounds):
        runs["ours"].append(sides["ours"].run(rows))
        runs["engine"].append(sides["engine"].run(rows))
        runs["pipe"].append(sides["pipe"].run(rows, size=bench.size))
        runs["stock"].append(sides["stock"].run(few))
    rate = {name: median(run.images_per_s for run in each) for name, each in runs.items()}
    bench.add(
        Line(f"plain Celery worker, queue to object and state, median of {bench.rounds}", rate["stock"], "images/s"),
        Line(f"diffusers compiled, `pipe(list)` of {bench.size}", rate["pipe"], "images/s"),
        Line("latentfarm's engine alone", rate["engine"], "images/s"),
        Line(f"latentfarm, {sides['ours'].slots()} slots, queue to object and state", rate["ours"], "images/s"),
        Line("latentfarm against the plain Celery worker", rate["ours"] / rate["stock"], "times", 4, at_least=True),
        Line(
            "latentfarm, all of it, against `pipe(list)` alone", rate["ours"] / rate["pipe"], "times", 1, at_least=True
        ),
        Line("latentfarm, all of it, against its engine alone", rate["ours"] / rate["engine"], "", 0.97, at_least=True),
    )
    if not bench.tiny:
        effective = rate["ours"] * sd15.TFLOP
        bench.add(
            Line(f"latentfarm, {sd15.TFLOP} TFLOP an image", effective, "TFLOP/s"),
            Line("that of the rate of a large product", effective / bench.matmul, "", 0.45, at_least=True),
        )
    for name in ("ours", "stock"):
        sides[name].save(few[0], bench.folder / f"{name}.png")
    apart = furthest_apart(bench.folder / "ours.png", bench.folder / "stock.png")
    # random weights magnify every rounding of 16 bits: the bar is that of float32
    bench.add(
        Line("an image of one seed: how far ours and the peer's are apart", apart, "of 255", 1 if bench.tiny else None)
    )


def mixed_jobs(bench: Bench, sides: dict[str, Any]) -> None:
    """Render jobs of mixed steps and guidance, ours from queue to object, the peers' static batches in memory."""
    rows, pipe = mixed(bench.count(96), steps=bench.mixed_steps), sides["pipe"]
    # a batch without guidance is another shape to compile
    pipe.run(uniform(bench.size, num_inference_steps=2, guidance_scale=1.0), size=bench.size)
    ours = sides["ours"].run(rows)
    arrival = pipe.run(rows, size=bench.size, order="arrival")
    in_order = pipe.run(rows, size=bench.size, order="sorted")
    bench.add(
        Line("mixed jobs: latentfarm, queue to object and state", ours.images_per_s, "images/s"),
        Line("mixed jobs: static batches in arrival order", arrival.images_per_s, "images/s"),
        Line("mixed jobs: static batches sorted by settings", in_order.images_per_s, "images/s"),
        Line("mixed jobs: against arrival order", arrival.wall_s / ours.wall_s, "times", 1.4, at_least=True),
        Line("mixed jobs: against sorted", in_order.wall_s / ours.wall_s, "times", 1, at_least=True),
        Line("mixed jobs: p99 time of a job against arrival order", ours.p99_s / arrival.p99_s, "", 0.5),
    )


def start(bench: Bench) -> None:
    """Measure a worker's start, the second of two, against diffusers' load and first call."""
    assert bench.settings is not None
    settings = bench.settings
    peer_start_s(settings, device=bench.load.device)
    our_start_s(settings, bench.folder, 1, **bench.steps)
    peer, ours = peer_start_s(settings, device=bench.load.device), our_start_s(settings, bench.folder, 1, **bench.steps)
    bench.add(
        Line("diffusers: load, first call, PNG, put", peer, "s"),
        Line("latentfarm: start to the first commit, a job waiting", ours, "s"),
        Line("start, against diffusers", ours / peer, "times", 1.2),
    )


def attempt(bench: Bench, needs_s: float, what: Callable[..., None], *more: Any) -> None:
    """Take a measurement if there is time; what fails is told and left out."""
    name = what.__name__.replace("_", " ")
    print(f"-- {name}", flush=True)
    if bench.ends - time.monotonic() < needs_s:
        bench.left_out.append(f"{name}: no time")
        return
    try:
        what(bench, *more)
    except (LatentfarmError, RuntimeError, ImportError, OSError) as error:
        bench.left_out.append(f"{name}: {error}")


def measure(bench: Bench) -> None:
    """Take every measurement, the most telling first."""
    attempt(bench, 0, matmul_rate)
    attempt(bench, 60, exactness)
    attempt(bench, 60, by_batch)
    try:
        with farm_servers(bench.folder / "farm") as found:
            told = {"model": "sd15", "model_source": bench.load.source, "dtype": bench.load.dtype}
            bench.settings = found.model_copy(update=told)
            with all_sides(bench) as sides:
                attempt(bench, 60, end_to_end, sides)
                attempt(bench, 60, mixed_jobs, sides)
            attempt(bench, 60, start)
    except (LatentfarmError, RuntimeError, ImportError, OSError) as error:
        bench.left_out.append(f"whatever needs a Redis, an S3 server or workers: {error}")
    attempt(bench, 60, by_slots)


class OnDevice(Conditions):
    """Under what a device was measured."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self._bench = bench

    def markdown(self) -> str:
        """Return a sentence, and what was left out."""
        load, name = self._bench.load, "the CPU, a tiny model: these figures say nothing"
        if load.device == "cuda":
            memory = torch.cuda.get_device_properties(0).total_memory / 2**30
            name = f"{torch.cuda.get_device_name(0)} ({memory:.0f} GiB), CUDA {torch.version.cuda}"
        versions = ", ".join(f"{each} {version(each)}" for each in ("torch", "diffusers", "transformers"))
        said = (
            f"{datetime.now(UTC):%Y-%m-%d}, {name}; {versions}; {load.dtype}, the scheduler Euler, guidance "
            f"{GUIDANCE:g}, 20 steps where nothing else is said, 512 x 512 pixels, seeds from 0 on."
        )
        return "\n".join([said, *(f"\nLeft out: {each}" for each in self._bench.left_out)])


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--tiny", action="store_true", help="tests' tiny model, few jobs: shows that the script works")
    parser.add_argument("--minutes", type=float, default=9.5, help="what does not fit is left out")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the table into docs/explanation/benchmarks.md")
    return parser.parse_args()


def main() -> int:
    """Return 1 where a bar is missed, 0 where there is no device."""
    chosen = parse()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured (--device cpu --tiny runs through the script)")
        return 0
    if chosen.device == "cpu" and not chosen.tiny:
        print("the CPU takes minutes for each picture of this model; add --tiny", file=sys.stderr)
        return 2
    ends = time.monotonic() + 60 * chosen.minutes
    with temporary_folder() as folder:
        dtype = "float32" if chosen.tiny else chosen.dtype
        load = Load(source=str(folder / "model"), dtype=dtype, device=chosen.device)
        bench = Bench(load, folder, ends, chosen.tiny, 1 if chosen.tiny else chosen.rounds)
        conditions = OnDevice(bench)
        if chosen.tiny:
            # on a busy machine, threads that wait for each other stand still
            torch.set_num_threads(1)
            sd15.use_euler(make_tiny(folder / "model"))
        else:
            sd15.write_sd15(folder / "model", dtype=getattr(torch, dtype), device=chosen.device)
            torch.cuda.empty_cache()
        measure(bench)
        return report("gpu", bench.lines, conditions, write=chosen.write)


if __name__ == "__main__":
    raise SystemExit(main())

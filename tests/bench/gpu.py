"""Measure a GPU with the shapes of SD 1.5, XL, 3.5 or FLUX.1 and random weights: nothing is downloaded.

    python -m tests.bench.gpu --model sd15 --part engine     # the engine alone, and static batches
    python -m tests.bench.gpu --model sd15 --part farm       # from queue to object, against two peers
    python -m tests.bench.gpu --model sdxl --part farm --quantization fp8 --write
    python -m tests.bench.gpu --device cpu --tiny            # only check the script, with a tiny model

Each part of each model ends within ten minutes and has a table of its own. ``--write`` also writes it into
docs/explanation/benchmarks.md. A measurement that cannot run here (no Redis, no S3 server, no time) is left out, with a
message.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from statistics import fmean, median
from typing import Any

import torch
from tests.bench import worker_engine
from tests.bench.bench_start import diffusers_start_s, latentfarm_start_s
from tests.bench.comparison import largest_difference
from tests.bench.gpu_run import ARRIVAL_SHARE, FAILURES, WORKLOADS, DeviceConditions, GpuRun
from tests.bench.render_processes import ModelSource, Run
from tests.bench.servers import farm_servers, temporary_folder
from tests.bench.table import Line, report
from tests.bench.workload import arrivals, mixed, uniform
from tests.support.full_size import EULER, use_scheduler
from tests.support.tiny import make_tiny


def matmul_rate(run: GpuRun) -> None:
    """Measure the rate of bfloat16 products of 8192 x 8192 random matrices."""
    device, side = torch.device(run.source.device), 128 if run.tiny else 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    taken = []
    for turn in range(23):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= 3:
            taken.append(time.perf_counter() - began)
    run.matmul = 2 * side**3 / median(taken) / 1e12
    run.add(Line(f"bfloat16 product of {side} x {side} matrices, median of 20", run.matmul, "TFLOP/s"))


def micro_batches(run: GpuRun) -> None:
    """Measure the engine alone by micro-batch, without and with CUDA graphs."""
    with run.renderer("engine", micro_batch=run.micro_batches[0]) as engine:
        for rows in run.micro_batches:
            for graphs in (False, True) if run.source.device == "cuda" else (False,):
                options = {"micro_batch": rows, "cuda_graphs": graphs}
                engine.run(uniform(rows, num_inference_steps=2), **options)
                rate = engine.run(uniform(run.count(2 * rows), **run.job_settings), **options).images_per_s
                label = f"engine alone, micro-batches of {rows} rows{', CUDA graphs' if graphs else ''}"
                run.add(Line(label, rate, "images/s"), *share_of_peak(run, rate))


def exactness(run: GpuRun) -> None:
    """Compare the bytes of jobs rendered alone and together with others."""
    rows = mixed(run.count(12), steps=run.mixed_steps)
    with run.renderer("engine") as engine:
        together = engine.digests(rows)
        alone = [engine.digests([row])[0] for row in rows[:4]]
    same = sum(one == other for one, other in zip(together, alone, strict=False))
    run.add(Line("jobs with the same bytes alone and together", 100 * same / len(alone), "%", 100, at_least=True))


def quantized_images(run: GpuRun) -> None:
    """Compare images of the bundled model, which is trained, with those without quantization."""
    images: dict[str, dict[int, Any]] = {}
    for quantization in ("none", run.source.quantization):
        family = worker_engine.load("", dtype="bfloat16", device=run.source.device, quantization=quantization)
        images[quantization] = dict(worker_engine.render(worker_engine.make_engine(family), uniform(8)))
    plain, quantized = images.values()
    errors = [float(((plain[at].astype(float) - quantized[at].astype(float)) ** 2).mean()) for at in plain]
    psnr = fmean(10 * math.log10(255**2 / max(error, 1e-3)) for error in errors)
    run.add(Line(f"mini with {run.source.quantization} against bfloat16, 8 images, mean PSNR", psnr, "dB"))


def static_batches(run: GpuRun) -> None:
    """Find the compiled static batch size that renders fastest."""
    rates: dict[int, float] = {}
    for size in run.batch_sizes:
        if rates and not run.has_time(180):
            run.left_out.append(f"static batches of {size}: no time")
            continue
        try:
            with run.renderer("diffusers", backend=run.backend) as diffusers:
                diffusers.run(uniform(size, num_inference_steps=2), size=size)
                rows = uniform(run.count(2 * size), **run.job_settings)
                rates[size] = diffusers.run(rows, size=size).images_per_s
        except RuntimeError as error:
            run.left_out.append(f"static batches of {size}: {str(error).splitlines()[-1]}")
            continue
        run.add(Line(f"diffusers compiled, channels_last, `pipe(list)` of {size}", rates[size], "images/s"))
    print(f"for --part farm: --batch-size {max(rates, key=rates.__getitem__)}", flush=True)


def share_of_peak(run: GpuRun, images_per_s: float, goal: float | None = None) -> list[Line]:
    """Return what a rate is of the measured matrix product's; nothing for the tiny model."""
    if run.tiny or not run.matmul:
        return []
    share = images_per_s * run.work.model.tflop / run.matmul
    return [
        Line(f"its share of the product's rate ({run.work.model.tflop} TFLOP an image)", share, "", goal, at_least=True)
    ]


def end_to_end(run: GpuRun, renderers: dict[str, Any]) -> None:
    """Render the same jobs with every renderer in turn, from queue to object and state, and compare one image."""
    rows, few = (uniform(run.count(count), **run.job_settings) for count in (run.work.jobs, run.work.few))
    runs: dict[str, list[Run]] = {name: [] for name in renderers}
    for _ in range(run.rounds):
        runs["latentfarm"].append(renderers["latentfarm"].run(rows))
        runs["engine"].append(renderers["engine"].run(rows))
        runs["diffusers"].append(renderers["diffusers"].run(rows, size=run.batch_size))
        runs["celery"].append(renderers["celery"].run(few))
    rate = {name: median(each.images_per_s for each in of_one) for name, of_one in runs.items()}
    ours, slots = rate["latentfarm"], renderers["latentfarm"].slots()
    run.rate = ours
    goal = None if run.tiny else run.work.images_per_s.get(run.source.quantization)
    run.add(
        Line(f"plain Celery worker, queue to object and state, median of {run.rounds}", rate["celery"], "images/s"),
        Line(f"diffusers compiled, `pipe(list)` of {run.batch_size}", rate["diffusers"], "images/s"),
        Line("latentfarm's engine alone", rate["engine"], "images/s"),
        Line(f"latentfarm, {slots} slots, queue to object and state", ours, "images/s", goal, at_least=True),
        *share_of_peak(run, ours, run.work.share),
        Line("latentfarm against the plain Celery worker", ours / rate["celery"], "times", 4, at_least=True),
        Line("latentfarm, end to end, against `pipe(list)` alone", ours / rate["diffusers"], "times", 1, at_least=True),
        Line("latentfarm, end to end, against its engine alone", ours / rate["engine"], "", 0.97, at_least=True),
    )
    files = [renderers[name].save(few[0], run.folder / f"{name}.png") for name in ("latentfarm", "celery")]
    # no bar in 16 bits: random weights magnify every rounding
    label, bar = "one seed: largest difference between the renderers", 1 if run.tiny else None
    run.add(Line(label, largest_difference(*files), "of 255", bar))


def mixed_jobs(run: GpuRun, renderers: dict[str, Any]) -> None:
    """Render jobs of mixed steps and guidance: latentfarm from queue to object, static batches in memory."""
    rows, diffusers = mixed(run.count(run.work.jobs // 2), steps=run.mixed_steps), renderers["diffusers"]
    # compiles the shape of a batch without guidance
    diffusers.run(uniform(run.batch_size, num_inference_steps=2, guidance_scale=1.0), size=run.batch_size)
    latentfarm = renderers["latentfarm"].run(rows)
    arrival = diffusers.run(rows, size=run.batch_size, order="arrival")
    by_settings = diffusers.run(rows, size=run.batch_size, order="sorted")
    run.add(
        Line("mixed jobs: latentfarm, queue to object and state", latentfarm.images_per_s, "images/s"),
        Line("mixed jobs: against arrival order", arrival.wall_s / latentfarm.wall_s, "times", 1.25, at_least=True),
        Line("mixed jobs: against sorted", by_settings.wall_s / latentfarm.wall_s, "times", 1, at_least=True),
    )


def arriving_jobs(run: GpuRun, renderers: dict[str, Any]) -> None:
    """Render mixed jobs that arrive one by one; report how long a job takes from its arrival to its image."""
    rows = mixed(run.count(run.work.jobs // 2), steps=run.mixed_steps, seed=1)
    # mixed jobs have more steps than those that were timed
    steps = sum(row["num_inference_steps"] for row in rows) / len(rows) / run.job_settings["num_inference_steps"]
    times = arrivals(len(rows), ARRIVAL_SHARE * run.rate / steps)
    ours = renderers["latentfarm"].run_arriving(rows, times)
    static = renderers["diffusers"].run_arriving(rows, times, size=run.batch_size, order="split")
    at = f"arriving jobs, {len(rows) / times[-1]:.2g} a second"
    run.add(
        Line(f"{at}: latentfarm, queue to object and state, p50", ours.p50_s, "s"),
        Line(f"{at}: latentfarm, p99", ours.p99_s, "s"),
        Line(f"{at}: split static batches in memory, p50", static.p50_s, "s"),
        Line(f"{at}: split static batches, p99", static.p99_s, "s"),
        Line("arriving jobs: p99 against split static batches", ours.p99_s / static.p99_s, "", 0.6),
    )


def start(run: GpuRun) -> None:
    """Measure a worker's second start, against diffusers' load and first call."""
    assert run.settings is not None
    settings = run.settings
    diffusers_start_s(settings, device=run.source.device)
    latentfarm_start_s(settings, run.folder, 1, **run.job_settings)
    diffusers = diffusers_start_s(settings, device=run.source.device)
    latentfarm = latentfarm_start_s(settings, run.folder, 1, **run.job_settings)
    run.add(
        Line("diffusers: load, first call, PNG, put", diffusers, "s"),
        Line("latentfarm: start to the first commit, a job waiting", latentfarm, "s"),
        Line("start, against diffusers", latentfarm / diffusers, "times", 1.2),
    )


def measure_engine(run: GpuRun) -> None:
    """Take the measurements without a farm, the most important first."""
    run.attempt(0, matmul_rate)
    run.attempt(60, micro_batches)
    run.attempt(60, static_batches)
    run.attempt(60, exactness)
    if run.source.quantization != "none":
        run.attempt(30, quantized_images)


def measure_farm(run: GpuRun) -> None:
    """Take the measurements from queue to object, the most important first."""
    run.attempt(0, matmul_rate)
    try:
        with farm_servers(run.folder / "farm") as servers:
            source = run.source
            update = {"model_source": source.source, "dtype": source.dtype, "quantization": source.quantization}
            run.settings = servers.model_copy(update={"model": "bench", **update})
            with run.all_renderers() as renderers:
                run.attempt(60, end_to_end, renderers)
                if run.rate:
                    run.attempt(60, arriving_jobs, renderers)
                run.attempt(60, mixed_jobs, renderers)
            run.attempt(60, start)
    except FAILURES as error:
        run.left_out.append(f"measurements with a Redis, an S3 server or workers: {error}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=[*WORKLOADS], default="sd15")
    parser.add_argument("--part", choices=["engine", "farm"], default="farm")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--quantization", choices=["none", "fp8"], default="none")
    parser.add_argument(
        "--batch-size",
        type=int,
        help="static batch size of the farm's peer [default: a usual one; --part engine finds it]",
    )
    parser.add_argument("--tiny", action="store_true", help="only check the script, with a tiny model and few jobs")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="a measurement that does not fit is left out [default: 9.5]"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the table into docs/explanation/benchmarks.md")
    return parser.parse_args(arguments)


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
    work = WORKLOADS[options.model]
    with temporary_folder() as folder:
        dtype = "float32" if options.tiny else options.dtype
        source = ModelSource(str(folder / "model"), dtype, options.device, quantization=options.quantization)
        size = options.batch_size or (2 if options.tiny else work.batch_size)
        run = GpuRun(source, work, folder, ends, options.tiny, 1 if options.tiny else options.rounds, size)
        conditions = DeviceConditions(run)
        if options.tiny:
            # on a busy machine, threads wait for each other
            torch.set_num_threads(1)
            tiny = make_tiny(folder / "model", kind=work.model.kind)
            if work.model.scheduler is EULER:
                use_scheduler(tiny, EULER)
        else:
            work.model.write(folder / "model", dtype=getattr(torch, dtype), device=options.device)
            torch.cuda.empty_cache()
        (measure_engine if options.part == "engine" else measure_farm)(run)
        quantized = [] if options.quantization == "none" else [options.quantization]
        name = "-".join(["gpu", options.model, options.part, *quantized])
        return report(name, run.lines, conditions, write=options.write)


if __name__ == "__main__":
    raise SystemExit(main())

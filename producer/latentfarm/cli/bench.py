"""``bench``: what this machine makes of a model."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.options import check_dtype, print_columns, print_json, with_model
from latentfarm.cli.progress import echo_err
from latentfarm.errors import InputError
from latentfarm.job import DEFAULT_GUIDANCE, Job
from latentfarm.local.farm import require_worker_packages
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.submission.prompts.rows import check_defaults

if TYPE_CHECKING:
    from latentfarm_worker.tools.benchmark import Measurement

_CPU_SLOTS, _GPU_SLOTS = (1, 2, 4, 8), (1, 4, 8, 16, 32, 64)
_STAGES = {name: f"{name}_s" for name in ("text", "denoise", "decode", "encode", "upload")}


def bench(
    model: options.WorkerModel = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, float16 or bfloat16.")] = None,
    slots: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Numbers of slots to try, in this order."),
    ] = None,
    num_inference_steps: Annotated[
        int, typer.Option("--num-inference-steps", help="Denoising steps of a picture, 1 to 500.")
    ] = 20,
    width: options.Width = None,
    height: options.Height = None,
    compiled: options.Compile = None,
    as_json: options.Json = False,
) -> None:
    """Measure pictures a second by slots on this machine, and where a picture's time goes.

    It renders here, with the worker's own engine and encoder, and needs no farm. Where a store is known, pictures are
    put there below probe/ and removed again; otherwise the upload is left out.

    Example: `latentfarm bench --model sd14=CompVis/stable-diffusion-v1-4`
    """
    tried = _numbers(slots) if slots is not None else ()
    settings = with_model(Settings.load(), model).model_copy(update={"dtype": check_dtype(dtype or "auto")})
    # a wrong size is told before a model is loaded
    asked = check_defaults({"num_inference_steps": num_inference_steps, "width": width, "height": height})
    job = Job(batch="bench", index=0, prompt="this and that", seed=0, scheduler="euler", **asked.given())
    require_worker_packages()
    from latentfarm_worker.build import keep_compiled_files, load_model, wants_compiling
    from latentfarm_worker.calibration.cache import device_name
    from latentfarm_worker.tools import benchmark

    echo_err("loading the model ...")
    family = load_model(settings)
    compiled_here = wants_compiling(family, settings.model_copy(update={"compile": compiled}))
    keep_compiled_files(settings)
    tried = tried or (_GPU_SLOTS if family.device.type == "cuda" else _CPU_SLOTS)
    bucket = Bucket.connect(settings) if settings.configured else None
    found = []
    for measured in benchmark.measure(family, tried, job=job, compiled=compiled_here, bucket=bucket):
        echo_err(f"{measured.slots} slots: {measured.images_per_s:.3g} images/s")
        found.append(measured)
    conditions = {
        "model": settings.model,
        "device": device_name(family.device),
        "dtype": str(family.dtype).removeprefix("torch."),
        "compiled": compiled_here,
        "width": width or family.native_width,
        "height": height or family.native_height,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": DEFAULT_GUIDANCE,
    }
    best = max(found, key=lambda measured: measured.images_per_s)
    if as_json:
        print_json({**conditions, "best_slots": best.slots, "slots": [asdict(measured) for measured in found]})
        return
    typer.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in conditions.items()))
    _print_table(found)
    typer.echo(f"fastest with {best.slots} slots: {best.images_per_s * 86_400:,.0f} pictures a day")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(1 <= number <= 256 for number in numbers):
        raise InputError(f"--slots {text!r}: write numbers from 1 to 256 with commas between them, such as 4,8,16")
    return numbers


def _print_table(found: list[Measurement]) -> None:
    """Print a line for each number of slots: the rate, what the engine is busy, and each stage's seconds a picture."""
    rows = [("slots", "images/s", "busy", *_STAGES, "memory")]
    for measured in found:
        seconds = [getattr(measured, name) for name in _STAGES.values()]
        memory = measured.memory_bytes
        rows.append(
            (
                str(measured.slots),
                f"{measured.images_per_s:.3g}",
                f"{measured.busy_share:.0%}",
                *("-" if each is None else f"{each:.3f} s" for each in seconds),
                "-" if memory is None else f"{memory / 1e9:.1f} GB",
            )
        )
    print_columns(rows)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(bench)

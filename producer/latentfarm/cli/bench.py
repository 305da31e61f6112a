"""``bench``: the throughput of a model on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.options import check_dtype, check_quantization, with_model
from latentfarm.cli.output import echo_err, plural, print_columns, print_json
from latentfarm.errors import InputError
from latentfarm.job import Job
from latentfarm.limits import DEFAULT_GUIDANCE
from latentfarm.local.farm import require_worker_packages
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.submission.prompts.notes import Notes
from latentfarm.submission.prompts.rows import check_defaults

if TYPE_CHECKING:
    from latentfarm_worker.tools.benchmark import Measurement

_CPU_ROWS, _GPU_ROWS = (2, 4, 8, 16), (8, 16, 32, 64)
_MAX_ROWS = 512
_STAGES = {name: f"{name}_s" for name in ("text", "denoise", "decode", "encode", "upload")}


def _join(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def bench(
    model: options.WorkerModel = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    micro_batch: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help=f"Rows of a call of the model to measure [default: {_join(_CPU_ROWS)}; on a GPU {_join(_GPU_ROWS)}]",
        ),
    ] = None,
    num_inference_steps: Annotated[
        int, typer.Option("--num-inference-steps", metavar="N", help="Denoising steps of an image")
    ] = 20,
    width: options.Width = None,
    height: options.Height = None,
    compiled: options.Compile = None,
    as_json: options.Json = False,
) -> None:
    """Measure the throughput of a model on this machine by the micro-batch, and the time of each stage of an image.

    The micro-batch is the number of rows in a call of the model; a guided image takes two. For each it renders a full
    batch of short images that are not timed, then two images per slot. It uses the worker's engine and encoder in this
    process and needs no farm. If the settings name a store, the upload is measured with objects below probe/, which
    are deleted again. On a CPU with instructions for bfloat16 it also measures what bfloat16 gains, unless a dtype is
    set.

    Example: `latentfarm bench --model sd14=CompVis/stable-diffusion-v1-4`
    """
    sizes = _parse_rows(micro_batch) if micro_batch is not None else ()
    changes = {
        "dtype": None if dtype is None else check_dtype(dtype),
        "quantization": check_quantization(quantization),
        "compile": compiled,
    }
    settings = with_model(Settings.load(), model)
    settings = settings.model_copy(update={name: value for name, value in changes.items() if value is not None})
    # an invalid size is reported before the model is loaded
    shape = {"num_inference_steps": num_inference_steps, "width": width, "height": height}
    fields = check_defaults(shape, Notes())
    job = Job(batch="bench", index=0, prompt="this and that", seed=0, scheduler="euler", **fields.given())
    require_worker_packages()
    from latentfarm_worker.build import load_model
    from latentfarm_worker.calibration.cache import device_name
    from latentfarm_worker.tools import benchmark
    from latentfarm_worker.tools.bfloat16 import measure_gain

    echo_err("loading the model ...")
    family = load_model(settings)
    sizes = sizes or (_GPU_ROWS if family.device.type == "cuda" else _CPU_ROWS)
    bucket = Bucket.connect(settings) if settings.configured else None
    found = []
    for measured in benchmark.measure(family, settings, sizes, job=job, bucket=bucket):
        echo_err(_timed(measured))
        found.append(measured)
    best = max(found, key=lambda measured: measured.images_per_s)
    gain = measure_gain(family, settings, best.micro_batch) if settings.dtype == "auto" else None
    conditions = {
        "model": settings.model,
        "device": device_name(family.device),
        "dtype": str(family.dtype).removeprefix("torch."),
        "quantization": family.quantization,
        "compiled": all(measured.compiled for measured in found),
        "width": width or family.native_width,
        "height": height or family.native_height,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": DEFAULT_GUIDANCE,
    }
    if as_json:
        lines = [asdict(measured) for measured in found]
        best_of = {"best_micro_batch": best.micro_batch, "bfloat16": None if gain is None else asdict(gain)}
        print_json({**conditions, **best_of, "micro_batches": lines})
        return
    typer.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in conditions.items()))
    _print_table(found)
    per_day = f"{best.images_per_s * 86_400:,.0f} images per day"
    typer.echo(f"fastest with micro-batches of {plural(best.micro_batch, 'row')}: {per_day}")
    if gain is not None:
        typer.echo(str(gain))


def _parse_rows(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(2 <= number <= _MAX_ROWS and number % 2 == 0 for number in numbers):
        raise InputError(
            f"--micro-batch {text!r}: write even numbers from 2 to {_MAX_ROWS} separated by commas, such as 4,8,16"
        )
    # ascending, as the first size that does not fit into memory ends the measurement
    return tuple(sorted(set(numbers)))


def _timed(measured: Measurement) -> str:
    """Return what was measured in one line."""
    return (
        f"micro-batches of {plural(measured.micro_batch, 'row')}: {measured.images_per_s:.3g} images/s, timed over "
        f"{plural(measured.images, 'image')} after {measured.warm_up_s:.1f} s of warm-up"
    )


def _print_table(found: list[Measurement]) -> None:
    """Print the measurements, with each stage's seconds per image."""
    rows = [("rows", "slots", "images/s", "busy", *_STAGES, "memory")]
    for measured in found:
        seconds = [getattr(measured, name) for name in _STAGES.values()]
        memory = measured.memory_bytes
        rows.append(
            (
                str(measured.micro_batch),
                str(measured.slots),
                f"{measured.images_per_s:.3g}",
                f"{measured.busy_share:.0%}",
                *("-" if each is None else f"{each:.3f} s" for each in seconds),
                "-" if memory is None else f"{memory / 1e9:.1f} GB",
            )
        )
    print_columns(rows)

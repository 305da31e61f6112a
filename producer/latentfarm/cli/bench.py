"""``bench``: the throughput of a model on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.options import check_dtype, with_model
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

_CPU_SLOTS, _GPU_SLOTS = (1, 2, 4, 8), (1, 4, 8, 16, 32, 64)
_STAGES = {name: f"{name}_s" for name in ("text", "denoise", "decode", "encode", "upload")}


def _join(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def bench(
    model: options.WorkerModel = None,
    dtype: options.Dtype = None,
    slots: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help=f"Numbers of slots to measure [default: {_join(_CPU_SLOTS)}; on a GPU {_join(_GPU_SLOTS)}]",
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
    """Measure the throughput of a model on this machine by slots, and the time of each stage of an image.

    For each number of slots it renders a full batch of short images that are not timed, then two images per slot.
    It uses the worker's engine and encoder in this process and needs no farm. If the settings name a store, the
    upload is measured with objects below probe/, which are deleted again.

    Example: `latentfarm bench --model sd14=CompVis/stable-diffusion-v1-4`
    """
    counts = _parse_slots(slots) if slots is not None else ()
    settings = with_model(Settings.load(), model).model_copy(update={"dtype": check_dtype(dtype)})
    # an invalid size is reported before the model is loaded
    sizes = {"num_inference_steps": num_inference_steps, "width": width, "height": height}
    fields = check_defaults(sizes, Notes())
    job = Job(batch="bench", index=0, prompt="this and that", seed=0, scheduler="euler", **fields.given())
    require_worker_packages()
    from latentfarm_worker.build import keep_compiled_files, load_model, wants_compiling
    from latentfarm_worker.calibration.cache import device_name
    from latentfarm_worker.tools import benchmark

    echo_err("loading the model ...")
    family = load_model(settings)
    compiled_here = wants_compiling(family, settings.model_copy(update={"compile": compiled}))
    keep_compiled_files(settings)
    counts = counts or (_GPU_SLOTS if family.device.type == "cuda" else _CPU_SLOTS)
    bucket = Bucket.connect(settings) if settings.configured else None
    found = []
    for measured in benchmark.measure(family, counts, job=job, compiled=compiled_here, bucket=bucket):
        echo_err(_timed(measured))
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
    typer.echo(f"fastest with {plural(best.slots, 'slot')}: {best.images_per_s * 86_400:,.0f} images per day")


def _parse_slots(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(1 <= number <= 256 for number in numbers):
        raise InputError(f"--slots {text!r}: write numbers from 1 to 256 separated by commas, such as 4,8,16")
    # ascending, as the first number that does not fit into memory ends the measurement
    return tuple(sorted(set(numbers)))


def _timed(measured: Measurement) -> str:
    """Return what was measured in one line."""
    return (
        f"{plural(measured.slots, 'slot')}: {measured.images_per_s:.3g} images/s, timed over "
        f"{plural(measured.images, 'image')} after {measured.warm_up_s:.1f} s of warm-up"
    )


def _print_table(found: list[Measurement]) -> None:
    """Print the measurements, with each stage's seconds per image."""
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

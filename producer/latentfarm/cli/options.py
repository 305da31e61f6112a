"""Options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from latentfarm.errors import InputError
from latentfarm.job import DEFAULT_GUIDANCE, DEFAULT_STEPS
from latentfarm.schedulers import SHORT_NAMES

PromptFile = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="Prompts: .txt, one a line, or .jsonl in diffusers' parameter names."),
]
BatchName = Annotated[str, typer.Argument(metavar="BATCH", help="The batch's name, as `submit` printed it.")]
OutputFolder = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the pictures go.")]
NewBatch = Annotated[
    str | None,
    typer.Option("--batch", metavar="NAME", help="The batch's name; by default made of the file and its content."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RenderModel = Annotated[
    str,
    typer.Option("--model", metavar="MODEL", help="An alias, a diffusers folder, a hub id, or ALIAS=one of these."),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="auto, float32, float16 or bfloat16; auto is float32 on a CPU, float16 on a GPU."),
]
Slots = Annotated[
    int | None, typer.Option(min=0, max=256, help="Pictures denoised at once; 0 leaves it to the worker.")
]
Workers = Annotated[int, typer.Option("--workers", min=0, max=64, help="Worker processes to start.")]

Steps = Annotated[
    int | None,
    typer.Option("--num-inference-steps", help=f"Denoising steps, 1 to 500; {DEFAULT_STEPS} if open."),
]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance-scale", help=f"How closely to follow the prompt; {DEFAULT_GUIDANCE} if open."),
]
Width = Annotated[int | None, typer.Option(help="Pixels, a multiple of 8; the model's own if open.")]
Height = Annotated[int | None, typer.Option(help="Pixels, a multiple of 8; the model's own if open.")]
Seed = Annotated[int | None, typer.Option(help="One seed for all rows; by default each job gets its own.")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What the pictures should not show.")]
Scheduler = Annotated[
    str | None,
    typer.Option(help=f"A diffusers class name or one of {', '.join(SHORT_NAMES)}; the model's own if open."),
]
Images = Annotated[int | None, typer.Option("--num-images-per-prompt", help="Pictures of each row: seeds s, s+1, ...")]
Trace = Annotated[
    bool | None, typer.Option("--trace", help="Also save, for each job, the strip of pictures from noise to result.")
]
Priority = Annotated[int, typer.Option(min=-1000, max=1000, help="Batches of a higher priority run first.")]

_DTYPES = ("auto", "float32", "float16", "bfloat16")


def defaults(
    steps: int | None,
    guidance: float | None,
    width: int | None,
    height: int | None,
    seed: int | None,
    negative: str | None,
    scheduler: str | None,
    images: int | None,
    trace: bool | None,  # noqa: FBT001
) -> dict[str, Any]:
    """Return the batch's defaults in diffusers' parameter names."""
    return {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "width": width,
        "height": height,
        "seed": seed,
        "negative_prompt": negative,
        "scheduler": scheduler,
        "num_images_per_prompt": images,
        "trace": trace,
    }


def check_dtype(dtype: str) -> str:
    """Return ``dtype``.

    Raises:
        InputError: it is none that a worker knows.
    """
    if dtype not in _DTYPES:
        raise InputError(f"--dtype {dtype!r}: write one of {', '.join(_DTYPES)}")
    return dtype


def print_json(data: object) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=2))

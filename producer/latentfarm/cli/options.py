"""Options that several commands share."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from latentfarm.errors import InputError
from latentfarm.image_formats import IMAGE_FORMATS, PNG
from latentfarm.job import DEFAULT_GUIDANCE, DEFAULT_STEPS
from latentfarm.model_spec import parse_model
from latentfarm.schedulers import SHORT_NAMES
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.prompts import FORMATS, ReadOptions

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PromptFile = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="Prompts: .txt, .jsonl, .csv, .tsv or .parquet, each also .gz; `-` for stdin; s3://bucket/key.",
    ),
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
WorkerModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="An alias, folder, hub id or ALIAS=one of these. (env: LATENTFARM_MODEL, LATENTFARM_MODEL_SOURCE)",
    ),
]
PlannedModel = Annotated[
    str,
    typer.Option(
        "--model", metavar="MODEL", help="The alias that workers serve, or a folder or hub id with a tokenizer."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="auto, float32, float16 or bfloat16; auto is float32 on a CPU, float16 on a GPU."),
]
Slots = Annotated[
    int | None, typer.Option(min=0, max=256, help="Pictures denoised at once; 0 leaves it to the worker.")
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the U-Net at the start; by default on a GPU only. (env: LATENTFARM_COMPILE)",
    ),
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
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        metavar="START..END",
        help="Guide only between these shares of the steps, such as 0..0.6: faster, and another picture.",
    ),
]
Width = Annotated[int | None, typer.Option(help="Pixels, a multiple of 8; the model's own if open.")]
Height = Annotated[int | None, typer.Option(help="Pixels, a multiple of 8; the model's own if open.")]
Seed = Annotated[int | None, typer.Option(help="One seed for all rows; by default each job gets its own.")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What the pictures should not show.")]
Scheduler = Annotated[
    str | None,
    typer.Option(help=f"A diffusers class name or one of {', '.join(SHORT_NAMES)}; the model's own if open."),
]
Syntax = Annotated[
    str | None,
    typer.Option(
        "--prompt-syntax",
        metavar="SYNTAX",
        help="plain: as diffusers, cut at 77 tokens. a1111: weights such as (x:1.2), BREAK, and prompts of any length.",
    ),
]
ClipSkip = Annotated[
    int | None, typer.Option("--clip-skip", help="Layers to leave out at the text encoder's end; 0 if open.")
]
Images = Annotated[int | None, typer.Option("--num-images-per-prompt", help="Pictures of each row: seeds s, s+1, ...")]
Trace = Annotated[
    bool | None, typer.Option("--trace", help="Also save, for each job, the strip of pictures from noise to result.")
]
StoredAs = Annotated[
    str | None,
    typer.Option(
        "--image-format",
        metavar="FORMAT",
        help=f"What pictures are stored as: {', '.join(IMAGE_FORMATS)}; {PNG.name} if open. Only jpeg loses anything.",
    ),
]
Priority = Annotated[int, typer.Option(min=-1000, max=1000, help="Batches of a higher priority run first.")]

PromptColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="The column that holds the prompt, if it is not `prompt`.")
]
KeepColumns = Annotated[
    bool, typer.Option("--keep-columns", help="Carry unknown columns through to the results instead of refusing them.")
]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="FORMAT", help=f"{', '.join(FORMATS)}; by the name if open (stdin has none)."),
]
Sweeps = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="FIELD=VALUES",
        help="Render every row with each value: guidance_scale=5,7.5 or seed=1..4; more sweeps multiply.",
    ),
]
Dynamic = Annotated[
    bool, typer.Option("--dynamic-prompts", help="Choose one of `{a|b}` and a line of `__wildcards__` in each prompt.")
]
Wildcards = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where NAME.txt of `__NAME__` lies; implies --dynamic-prompts.")
]
PromptSeed = Annotated[int, typer.Option(help="What the choices of --dynamic-prompts are made of.")]

_DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Rows:
    """What a command was told about its rows: how they are read, what each becomes, what they leave open."""

    reading: ReadOptions
    expansion: Expansion
    defaults: dict[str, Any]


def _rows(
    prompt_column: PromptColumn = None,
    keep_columns: KeepColumns = False,
    format_: Format = None,
    sweep: Sweeps = None,
    dynamic_prompts: Dynamic = False,
    wildcards: Wildcards = None,
    prompt_seed: PromptSeed = 0,
    num_inference_steps: Steps = None,
    guidance_scale: Guidance = None,
    guidance_interval: GuidanceInterval = None,
    width: Width = None,
    height: Height = None,
    seed: Seed = None,
    negative_prompt: Negative = None,
    scheduler: Scheduler = None,
    prompt_syntax: Syntax = None,
    clip_skip: ClipSkip = None,
    num_images_per_prompt: Images = None,
    trace: Trace = None,
    image_format: StoredAs = None,
) -> Rows:
    return Rows(
        reading=ReadOptions(prompt_column=prompt_column, keep_columns=keep_columns, format=format_),
        expansion=Expansion.parse(
            sweep or (), wildcards=wildcards, dynamic=dynamic_prompts or wildcards is not None, seed=prompt_seed
        ),
        defaults={
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "width": width,
            "height": height,
            "seed": seed,
            "negative_prompt": negative_prompt,
            "scheduler": scheduler,
            "prompt_syntax": prompt_syntax,
            "clip_skip": clip_skip,
            "num_images_per_prompt": num_images_per_prompt,
            "trace": trace,
            "image_format": image_format,
        },
    )


def source_client(settings: Settings) -> S3Client | None:
    """Return what reads an ``s3://`` source; None where no store is known."""
    return Bucket.connect(settings).client if settings.configured else None


def prompt_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say what its rows are; its parameter ``rows`` receives them as one ``Rows``.

    They stand in the command's signature where ``rows`` stands, as typer reads it.
    """
    shared = inspect.signature(_rows, eval_str=True).parameters
    for parameter in shared.values():
        get_args(parameter.annotation)[1].rich_help_panel = "What the rows are"
    own = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        parameters += shared.values() if name == "rows" else [parameter]

    @wraps(command)
    def run(**given: Any) -> None:
        rows = _rows(**{name: given.pop(name) for name in shared})
        command(rows=rows, **given)

    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def check_dtype(dtype: str) -> str:
    """Return ``dtype``.

    Raises:
        InputError: it is none that a worker knows.
    """
    return _one_of(_DTYPES, dtype, "--dtype")


def _one_of(choices: Sequence[str], value: str, option: str) -> str:
    if value not in choices:
        raise InputError(f"{option} {value!r}: write one of {', '.join(choices)}")
    return value


def with_model(settings: Settings, model: str | None) -> Settings:
    """Return the settings of a worker for ``--model``; what they name where it was left out."""
    if model is None:
        return settings
    spec = parse_model(model)
    return settings.model_copy(update={"model": spec.alias, "model_source": spec.source})


def print_json(data: object) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=2))


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout, a line a row; the first one holds the columns' names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

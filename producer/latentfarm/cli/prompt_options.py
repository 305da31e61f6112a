"""The options of commands that read prompts; ``edit_options`` has those for input images and adapters."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from latentfarm.cli import options
from latentfarm.cli.amounts import parse_amount
from latentfarm.cli.command_group import ALL_COLUMNS
from latentfarm.cli.edit_options import HEADING as EDIT_HEADING
from latentfarm.cli.edit_options import edit_fields
from latentfarm.errors import InputError
from latentfarm.image_formats import IMAGE_FORMATS, PNG
from latentfarm.limits import DEFAULT_GUIDANCE, DEFAULT_STEPS
from latentfarm.settings import Settings
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.prompts import FORMATS, ReadOptions

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from latentfarm.inputs.policy import InputPolicy

HEADING = "Prompt options"

Steps = Annotated[
    int | None,
    typer.Option(
        "--num-inference-steps", metavar="N", help=f"Denoising steps [default: the model's, or {DEFAULT_STEPS}]"
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale",
        metavar="SCALE",
        help=f"Scale of classifier-free guidance [default: the model's, or {DEFAULT_GUIDANCE}]",
    ),
]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(metavar="START..END", help="Share of the steps with guidance, such as 0..0.6 [default: 0..1]"),
]
Seed = Annotated[
    int | None, typer.Option(metavar="SEED", help="Seed of every row [default: one per job, from batch and index]")
]
Negative = Annotated[
    str | None, typer.Option("--negative-prompt", metavar="TEXT", help="What the images must not show")
]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="diffusers class or short name, such as dpm++2m [default: the model's own]"),
]
Syntax = Annotated[
    str | None,
    typer.Option(
        "--prompt-syntax", metavar="SYNTAX", help="plain, or a1111: (weights:1.2), BREAK, any length [default: plain]"
    ),
]
ClipSkip = Annotated[
    int | None,
    typer.Option("--clip-skip", metavar="N", help="Layers to skip at the end of the text encoder [default: 0]"),
]
Images = Annotated[
    int | None,
    typer.Option(
        "--num-images-per-prompt", metavar="N", help="Images of each row, with seeds s, s+1, ... [default: 1]"
    ),
]
SaveIntermediates = Annotated[
    bool | None,
    typer.Option("--save-intermediates", help="Also store a strip of each image's previews, from noise to result"),
]
ImageFormat = Annotated[
    str | None,
    typer.Option(
        "--image-format", metavar="FORMAT", help=f"{', '.join(IMAGE_FORMATS)}; only jpeg is lossy [default: {PNG.name}]"
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="SHARE",
        help="Stop after this share of the steps, or N of them, until `finish`",
    ),
]
Score = Annotated[
    list[str] | None,
    typer.Option("--score", metavar="NAME", help="Scorer whose scores are recorded, such as clip (repeatable)"),
]
PromptColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Column with the prompt [default: prompt]")]
KeepColumns = Annotated[
    str | None,
    typer.Option(
        "--keep-columns", metavar="[NAMES]", help="Copy unknown columns to the results: all, or those of a list a,b"
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="FIELD=NAME", help="Read a field from the column NAME (repeatable)"),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help=f"{', '.join(name for name in FORMATS if '.' not in name)}, or with .gz [default: by the name]",
    ),
]
Sweeps = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="FIELD=VALUES",
        help="Render each row with each value, such as seed=1..4 (repeatable)",
    ),
]
Dynamic = Annotated[
    bool, typer.Option("--dynamic-prompts", help="Choose one of `{a|b}` and a line of each `__wildcard__`")
]
Wildcards = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder with files for `__NAME__`: txt, yaml, json; implies --dynamic-prompts"),
]
DynamicSeed = Annotated[
    int, typer.Option("--dynamic-prompts-seed", metavar="SEED", help="Seed of the choices of --dynamic-prompts")
]


@dataclass(frozen=True)
class Rows:
    """The prompt options of a command: how to read rows, their expansion, and the defaults of their fields."""

    reading: ReadOptions
    expansion: Expansion
    defaults: dict[str, Any]


def _rows(
    prompt_column: PromptColumn = None,
    keep_columns: KeepColumns = None,
    column: Columns = None,
    format_: Format = None,
    sweep: Sweeps = None,
    dynamic_prompts: Dynamic = False,
    wildcards: Wildcards = None,
    dynamic_prompts_seed: DynamicSeed = 0,
    num_inference_steps: Steps = None,
    guidance_scale: Guidance = None,
    guidance_interval: GuidanceInterval = None,
    width: options.Width = None,
    height: options.Height = None,
    seed: Seed = None,
    negative_prompt: Negative = None,
    scheduler: Scheduler = None,
    prompt_syntax: Syntax = None,
    clip_skip: ClipSkip = None,
    num_images_per_prompt: Images = None,
    save_intermediates: SaveIntermediates = None,
    image_format: ImageFormat = None,
    draft: Draft = None,
    score: Score = None,
) -> Rows:
    return Rows(
        reading=ReadOptions(
            prompt_column=prompt_column,
            keep_columns=_kept(keep_columns),
            format=format_,
            columns=tuple(map(_mapped, column or ())),
        ),
        expansion=Expansion.parse(
            sweep or (),
            wildcards=wildcards,
            dynamic=dynamic_prompts or wildcards is not None,
            seed=dynamic_prompts_seed,
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
            "save_intermediates": save_intermediates,
            "image_format": image_format,
            "draft": None if draft is None else parse_amount("--draft", draft, zero=True),
            "scorers": [part.strip() for text in score for part in text.split(",")] if score else None,
        },
    )


def _kept(names: str | None) -> bool | tuple[str, ...]:
    """Return which unknown columns are kept, from the value of --keep-columns."""
    if names in {None, ALL_COLUMNS}:
        return names is not None
    try:
        [found] = csv.reader([str(names)], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        found = []
    if not all(found) or not found:
        raise InputError(f"--keep-columns {names!r} is not a list of columns; write a,b, or nothing for all of them")
    return tuple(found)


def _mapped(option: str) -> tuple[str, str]:
    """Return field and column of ``FIELD=NAME``."""
    field, equals, column = option.partition("=")
    if not equals:
        raise InputError(f"--column {option!r} names no column; write FIELD=NAME, such as seed=image_seed")
    return field.strip(), column.strip()


def prompt_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the prompt options to a command. Its parameter ``rows`` receives them as one ``Rows``.

    In the signature that typer reads, they replace ``rows``.
    """
    common, edits = _under_heading(_rows, HEADING), _under_heading(edit_fields, EDIT_HEADING)
    shared = {**common, **edits}
    own = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        parameters += shared.values() if name == "rows" else [parameter]

    @wraps(command)
    def run(**given: Any) -> None:
        rows = _rows(**{name: given.pop(name) for name in common})
        rows.defaults.update(edit_fields(**{name: given.pop(name) for name in edits}))
        command(rows=rows, **given)

    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _under_heading(options_of: Callable[..., Any], heading: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function by name, their options under a heading of the help."""
    found = {}
    for name, parameter in inspect.signature(options_of, eval_str=True).parameters.items():
        kind, option = get_args(parameter.annotation)
        # a copy: commands without the other prompt options list --width and --height under "Options"
        option = copy(option)
        option.rich_help_panel = heading
        found[name] = parameter.replace(annotation=Annotated[kind, option])
    return found


def input_policy(settings: Settings, file: str) -> InputPolicy:
    """Return which sources of input images the rows of a prompt file may use, also before a farm runs."""
    from latentfarm.inputs.policy import InputPolicy
    from latentfarm.storage.bucket import Bucket

    return InputPolicy.of_user(settings, Bucket.connect(settings) if settings.configured else None, file)


def source_client(settings: Settings) -> S3Client | None:
    """Return the client that reads ``s3://`` sources; None if the settings name no store."""
    from latentfarm.storage.bucket import Bucket

    return Bucket.connect(settings).client if settings.configured else None

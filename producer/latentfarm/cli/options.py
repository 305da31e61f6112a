"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from latentfarm.cli.value_check import check_prompt_file
from latentfarm.errors import InputError

if TYPE_CHECKING:
    from latentfarm.settings import Settings

PromptFile = Annotated[
    str,
    typer.Argument(metavar="FILE", callback=check_prompt_file, help="Prompt file, `-` for stdin, or s3://BUCKET/KEY"),
]
BatchName = Annotated[str, typer.Argument(metavar="BATCH", help="Name of the batch")]
OutputFolder = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the images")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Remove images of another batch from DIR, and overwrite other files"),
]
NewBatch = Annotated[
    str | None,
    typer.Option("--batch", metavar="NAME", help="Name of the batch [default: from the file's name and content]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON")]
RenderModel = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="Alias, folder, file, hub id or ALIAS=SOURCE")
]
WorkerModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Alias, folder, file, hub id or ALIAS=SOURCE [env: LATENTFARM_MODEL]",
    ),
]
WorkerModels = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Folder, file, hub id or ALIAS=SOURCE (repeatable) [env: LATENTFARM_MODELS]",
    ),
]
UpModels = Annotated[
    list[str] | None,
    typer.Option(
        "--model", metavar="MODEL", help="Alias, folder, file, hub id or ALIAS=SOURCE (repeatable) [default: mini]"
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="DTYPE", help="auto, float32, float16 or bfloat16 [default: auto]"),
]
Quantization = Annotated[
    str | None,
    typer.Option(metavar="KIND", help="fp8, nf4 or none [env: LATENTFARM_QUANTIZATION]"),
]
TextEncoder = Annotated[
    str | None,
    typer.Option(
        "--text-encoder",
        metavar="PLACE",
        help="resident, offload, cpu [default: auto] [env: LATENTFARM_TEXT_ENCODER]",
    ),
]
Slots = Annotated[
    int | None,
    typer.Option(min=0, max=256, metavar="N", help="Images denoised at once [default: fastest]"),
]
Compile = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="Compile the model [default: on a GPU] [env: LATENTFARM_COMPILE]"),
]
Width = Annotated[
    int | None, typer.Option(metavar="PIXELS", help="Width, a multiple of 8 [default: the model's native width]")
]
Height = Annotated[
    int | None, typer.Option(metavar="PIXELS", help="Height, a multiple of 8 [default: the model's native height]")
]
Workers = Annotated[int, typer.Option("--workers", min=0, max=64, metavar="N", help="Worker processes to start")]
Priority = Annotated[
    int, typer.Option(min=-1000, max=1000, metavar="N", help="Batches with a higher priority run first")
]
Preempt = Annotated[
    bool, typer.Option("--preempt", help="Take the place of running images of other batches, which go on later")
]
JobStates = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        help="Only pending, leased, done, failed, cancelled or drafted jobs (repeatable)",
    ),
]

Picks = Annotated[
    list[str] | None,
    typer.Option("--pick", metavar="PICK", help="Only jobs whose image is picked, rejected or none (repeatable)"),
]


def require_choice(option: str, value: str, choices: Sequence[str]) -> str:
    """Return ``value``.

    Raises:
        InputError: it is none of the choices.
    """
    if value not in choices:
        raise InputError(f"{option} {value!r}: write one of {', '.join(choices)}")
    return value


def check_dtype(dtype: str | None) -> str:
    """Return ``dtype``, or ``auto`` if none was given.

    Raises:
        InputError: it is unknown.
    """
    from latentfarm.settings import Dtype as SettingsDtype

    return require_choice("--dtype", "auto" if dtype is None else dtype, get_args(SettingsDtype))


def check_quantization(quantization: str | None) -> str | None:
    """Return ``quantization``.

    Raises:
        InputError: it is unknown.
    """
    from latentfarm.settings import Quantization as SettingsQuantization

    if quantization is None:
        return None
    return require_choice("--quantization", quantization, get_args(SettingsQuantization))


def check_text_encoder(place: str | None) -> str | None:
    """Return ``place``.

    Raises:
        InputError: it is unknown.
    """
    from latentfarm.settings import TextEncoder as SettingsTextEncoder

    return None if place is None else require_choice("--text-encoder", place, get_args(SettingsTextEncoder))


def with_model(settings: Settings, model: str | None) -> Settings:
    """Return the settings with the model of ``--model``; unchanged if the option was not given."""
    return with_models(settings, [] if model is None else [model])


def with_models(settings: Settings, models: Sequence[str]) -> Settings:
    """Return the settings with the models of each ``--model``; unchanged if the option was not given.

    Raises:
        InputError: one is no model, or two have one alias.
    """
    if not models:
        return settings
    from latentfarm import model_spec

    return model_spec.with_models(settings, model_spec.parse_models(models))

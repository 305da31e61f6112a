"""``model``: what a model's files are."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.model_options import Base, Revision, Vae, Variant, with_model_options
from latentfarm.cli.output import print_json
from latentfarm.cli.shared import fail_if
from latentfarm.model_spec import parse_model
from latentfarm.settings import Settings


class Action(StrEnum):
    """What to do with a model."""

    INSPECT = "inspect"


def model(
    _action: Annotated[Action, typer.Argument(metavar="inspect", help="Describe a model")],
    source: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, file, hub id or ALIAS=SOURCE")],
    base: Base = None,
    vae: Vae = None,
    variant: Variant = None,
    revision: Revision = None,
    digest: Annotated[bool, typer.Option("--digest", help="Hash the weights too; it reads them all")] = False,
    as_json: options.Json = False,
) -> None:
    """Describe a model: family, size, dtype, memory, licence, what it can do, and what is missing.

    It reads configs and the headers of files, no weights, downloads nothing, and needs no torch. Exit code 1: a worker
    would not find all that it needs.

    Example: `latentfarm model inspect /models/sd_xl_base_1.0.safetensors`
    """
    [spec] = with_model_options([parse_model(source)], base=base, vae=vae, variant=variant, revision=revision)
    from latentfarm_worker.checkpoints.inspection import inspect, text_of
    from latentfarm_worker.mini import locate

    found = inspect(locate(spec.source, alias=spec.alias), digest=digest, cache=Settings.load().cache_dir)
    if as_json:
        print_json(found.as_dict())
    else:
        for line in text_of(found):
            typer.echo(line)
    fail_if(bool(found.missing))

"""Options that say which files of a model are meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from latentfarm.errors import InputError

if TYPE_CHECKING:
    from latentfarm.model_spec import ModelSpec
    from latentfarm.settings import Settings

Base = Annotated[
    str | None,
    typer.Option("--base", metavar="SOURCE", help="Folder or hub id with what a single file lacks"),
]
Vae = Annotated[
    str | None,
    typer.Option("--vae", metavar="SOURCE", help="Folder, file or hub id of another VAE"),
]
Variant = Annotated[
    str | None,
    typer.Option("--variant", metavar="NAME", help="Weights to read, such as fp16"),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="NAME", help="The hub's branch, tag or commit"),
]


def with_model_options(
    specs: Sequence[ModelSpec], *, base: str | None, vae: str | None, variant: str | None, revision: str | None
) -> tuple[ModelSpec, ...]:
    """Return the models with the options of a command line, which belong to its one model.

    Raises:
        InputError: there are several models, or an option is not for this one.
    """
    given = {"base": base, "vae": vae, "variant": variant, "revision": revision}
    chosen = {name: value for name, value in given.items() if value is not None}
    if not chosen:
        return tuple(specs)
    for name, value in chosen.items():
        if not value.strip():
            raise InputError(f"--{name} {value!r} is empty; leave it out, or name one")
    if len(specs) != 1:
        name, value = next(iter(chosen.items()))
        raise InputError(f"--{name} is of one model; write it after its source: --model ALIAS=SOURCE,{name}={value}")
    from latentfarm.model_spec import with_options

    return (replace(specs[0], source=with_options(specs[0].source, **chosen)),)


def with_options_of_model(
    settings: Settings, *, base: str | None, vae: str | None, variant: str | None, revision: str | None
) -> Settings:
    """Return the settings of a worker with the options of a command line for its one model.

    Raises:
        InputError: it serves several models, or an option is not for this one.
    """
    if all(option is None for option in (base, vae, variant, revision)):
        return settings
    from latentfarm import model_spec

    specs = model_spec.served_models(settings)
    chosen = with_model_options(specs, base=base, vae=vae, variant=variant, revision=revision)
    return model_spec.with_models(settings, chosen)

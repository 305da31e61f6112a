"""``key``: API keys of the HTTP server."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from latentfarm.cli.output import echo_err
from latentfarm.local.http_server import require_server_packages


class Action(StrEnum):
    """What to do with keys."""

    NEW = "new"


def key(
    _action: Annotated[Action, typer.Argument(metavar="new", help="Make a key")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of its owner, in logs and as owner of batches")],
    scopes: Annotated[
        str,
        typer.Option("--scopes", metavar="SCOPES", help="What it allows: one or more of read, submit, admin"),
    ] = "read,submit",
    append: Annotated[
        Path | None,
        typer.Option("--append", metavar="FILE", help="Add its line to the keys file [default: print the line]"),
    ] = None,
) -> None:
    """Make an API key for `latentfarm serve`. The key is printed once; the keys file has its SHA-256 only.

    With `--append`, the key goes to stdout. Otherwise its line for the file does, and the key to stderr. A server finds
    the new line within a second.

    Example: `latentfarm key new alice --append keys.txt`
    """
    require_server_packages()
    from latentfarm.server.security.keys import append_key, new_key

    secret, made = new_key(name, scopes)
    if append is None:
        echo_err(f"the key of {name}, which nothing stores: {secret}")
        typer.echo(made.line)
        return
    append_key(append, made)
    echo_err(f"added {name} to {append}; the key is printed once, and nothing stores it:")
    typer.echo(secret)

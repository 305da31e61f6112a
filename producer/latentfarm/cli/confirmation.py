"""Prompts for confirmation before a command changes something for good."""

from __future__ import annotations

import sys

import typer

from latentfarm.cli.output import echo_err
from latentfarm.errors import InputError


def require_terminal(command: str) -> None:
    """Check that a command can prompt.

    Raises:
        InputError: stdin is no terminal.
    """
    if not sys.stdin.isatty():
        raise InputError(f"{command} prompts for confirmation, and stdin is not a terminal; write --yes")


def require_confirmation(question: str, unchanged: str) -> None:
    """Return if the user confirms; else print ``unchanged``, such as ``nothing was deleted``, and end the command."""
    try:
        confirmed = typer.confirm(question, err=True)
    except typer.Abort:
        # Ctrl-C, or the end of the input
        echo_err(f"\n{unchanged}")
        raise typer.Exit(130) from None
    if not confirmed:
        echo_err(unchanged)
        raise typer.Exit(1)

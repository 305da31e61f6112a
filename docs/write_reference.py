"""Writes the commands' part of docs/reference.md from the commands themselves: ``make docs``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.main import get_command

from latentfarm.cli import app

REFERENCE = Path(__file__).parent / "reference.md"
BEGIN, END = "<!-- commands: written by make docs -->", "<!-- /commands -->"


def commands_text() -> str:
    """Return a section a command: its usage, what it does, its options."""
    group: Any = get_command(app)
    return "\n".join(_section(name, command) for name, command in group.commands.items())


def reference_text() -> str:
    """Return docs/reference.md as it ought to be."""
    before, _, rest = REFERENCE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{commands_text()}\n{END}{rest.partition(END)[2]}"


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join(["latentfarm", name, *(p.metavar for p in arguments), "[OPTIONS]"])
    lines = [f"## latentfarm {name}", "", f"`{usage}`", "", re.sub(r"\n +", "\n", command.help), ""]
    lines += [f"- `{p.metavar}`: {p.help}" for p in arguments]
    lines += [f"- `{_names(p)}`: {p.help}" for p in options]
    return "\n".join([*lines, ""])


def _names(option: Any) -> str:
    names = "/".join([*option.opts, *option.secondary_opts]) if option.secondary_opts else " ".join(option.opts)
    return f"{names} {_value(option)}".strip()


def _value(option: Any) -> str:
    return "" if option.is_flag else str(option.metavar or option.type_descriptor.annotation.__name__.upper())


if __name__ == "__main__":
    REFERENCE.write_text(reference_text())

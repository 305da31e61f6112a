"""Write the commands' part of docs/reference/cli.md from the commands themselves: ``make docs``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.main import get_command

from latentfarm.cli import app

REFERENCE = Path(__file__).parent / "reference" / "cli.md"
BEGIN, END = "<!-- commands: written by make docs -->", "<!-- /commands -->"
#: commands that read prompts: their common options are listed once
PROMPT_COMMANDS = ("render", "submit", "estimate")


def commands_text() -> str:
    """Return the prompt options, then a section for each command: usage, description, options."""
    commands: Any = get_command(app).commands  # type: ignore[attr-defined]
    first, *others = ([_entry(p) for p in commands[name].params] for name in PROMPT_COMMANDS)
    common = [entry for entry in first if all(entry in entries for entries in others) and "`--json`" not in entry]
    names = ", ".join(f"`{name}`" for name in PROMPT_COMMANDS)
    head = ["## Prompt options", "", f"Options of {names}:", "", *common, ""]
    sections = (_section(name, command, common) for name, command in commands.items())
    return "\n".join([*head, *sections])


def reference_text() -> str:
    """Return the expected text of docs/reference/cli.md."""
    before, _, rest = REFERENCE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{commands_text()}\n{END}{rest.partition(END)[2]}"


def _section(name: str, command: Any, common: list[str]) -> str:
    arguments = [p.metavar for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(["latentfarm", name, *arguments, "[OPTIONS]"])
    entries = [_entry(p) for p in command.params]
    if name in PROMPT_COMMANDS:
        entries = [*(entry for entry in entries if entry not in common), "- and the [prompt options](#prompt-options)"]
    return "\n".join(
        [f"## latentfarm {name}", "", f"`{usage}`", "", re.sub(r"\n +", "\n", command.help), "", *entries, ""]
    )


def _entry(param: Any) -> str:
    label = param.metavar if param.param_type_name == "argument" else _names(param)
    return f"- `{label}`: {param.help}"


def _names(option: Any) -> str:
    names = "/".join([*option.opts, *option.secondary_opts]) if option.secondary_opts else " ".join(option.opts)
    return f"{names} {_value(option)}".strip()


def _value(option: Any) -> str:
    return "" if option.is_flag else str(option.metavar or option.type_descriptor.annotation.__name__.upper())


if __name__ == "__main__":
    REFERENCE.write_text(reference_text())

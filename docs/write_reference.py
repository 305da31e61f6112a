"""Write the commands' part of docs/reference/cli.md from the commands themselves: ``make docs``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.main import get_command

from latentfarm.cli import COMMANDS, app
from latentfarm.cli.command_group import parameter_help, parameter_names

REFERENCE = Path(__file__).parent / "reference" / "cli.md"
BEGIN, END = "<!-- commands: written by make docs -->", "<!-- /commands -->"
#: commands that read prompts: their common options are listed once
PROMPT_COMMANDS = ("render", "submit", "estimate")


def commands_text() -> str:
    """Return an index of the commands, the prompt options, and a section for each command."""
    commands: Any = get_command(app).commands  # type: ignore[attr-defined]
    index = [
        f"| {heading} | {', '.join(f'[{name}](#latentfarm-{name})' for name in group)} |"
        for heading, group in COMMANDS.items()
    ]
    first, *others = (_entries(commands[name]) for name in PROMPT_COMMANDS)
    common = [entry for entry in first if all(entry in entries for entries in others) and "`--json`" not in entry]
    names = ", ".join(f"`{name}`" for name in PROMPT_COMMANDS)
    head = ["| | commands |", "|---|---|", *index, "", "## Prompt options", "", f"Options of {names}:", "", *common, ""]
    return "\n".join([*head, *(_section(name, command, common) for name, command in commands.items())])


def reference_text() -> str:
    """Return the expected text of docs/reference/cli.md."""
    before, _, rest = REFERENCE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{commands_text()}\n{END}{rest.partition(END)[2]}"


def _section(name: str, command: Any, common: list[str]) -> str:
    arguments = [p.metavar for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(["latentfarm", name, *arguments, "[OPTIONS]"])
    entries = _entries(command)
    if name in PROMPT_COMMANDS:
        entries = [*(entry for entry in entries if entry not in common), "- the [prompt options](#prompt-options)"]
    description = re.sub(r"\n +", "\n", command.help)
    return "\n".join([f"## latentfarm {name}", "", f"`{usage}`", "", description, "", *entries, ""])


def _entries(command: Any) -> list[str]:
    return [f"- `{parameter_names(p)}`: {parameter_help(p)}" for p in command.params]


if __name__ == "__main__":
    REFERENCE.write_text(reference_text())

"""Write the commands' part of docs/reference/cli.md from the commands themselves: ``make docs``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.main import get_command

from latentfarm.cli import app
from latentfarm.cli.command_group import parameter_help, parameter_names

REFERENCE = Path(__file__).parent / "reference" / "cli.md"
BEGIN, END = "<!-- commands: written by make docs -->", "<!-- /commands -->"
#: commands that read prompts: their common options are listed once
PROMPT_COMMANDS = ("render", "submit", "estimate")


def commands_text() -> str:
    """Return the prompt options, then a section for each command: usage, description, options."""
    commands: Any = get_command(app).commands  # type: ignore[attr-defined]
    common = [_entry(each) for each in commands["render"].params if each.rich_help_panel]
    names = ", ".join(f"`{name}`" for name in PROMPT_COMMANDS)
    head = ["## Prompt options", "", f"Options of {names}:", "", *common, ""]
    return "\n".join([*head, *(_section(name, command) for name, command in commands.items())])


def reference_text() -> str:
    """Return the expected text of docs/reference/cli.md."""
    before, _, rest = REFERENCE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{commands_text()}\n{END}{rest.partition(END)[2]}"


def _section(name: str, command: Any) -> str:
    arguments = [each.metavar for each in command.params if each.param_type_name == "argument"]
    usage = " ".join(["latentfarm", name, "[OPTIONS]", *arguments])
    description, _, example = re.sub(r"\n +", "\n", command.help).rpartition("\n\nExample: ")
    entries = [_entry(each) for each in command.params if not each.rich_help_panel]
    if name in PROMPT_COMMANDS:
        entries.append("- and the [prompt options](#prompt-options)")
    return "\n".join([f"## latentfarm {name}", "", f"`{usage}`, such as {example}", "", description, "", *entries, ""])


def _entry(parameter: Any) -> str:
    return f"- `{parameter_names(parameter)}`: {parameter_help(parameter)}"


if __name__ == "__main__":
    REFERENCE.write_text(reference_text())

"""Write the generated parts of docs/reference from the code: ``make docs``.

They are the commands of cli.md and the names of other tools in prompt-files.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.main import get_command

from latentfarm.cli import app
from latentfarm.cli.command_group import parameter_help, parameter_names
from latentfarm.submission.prompts.aliases import FIELD_ALIASES, PASSED_ALIASES, Alias, Dialect

REFERENCE = Path(__file__).parent / "reference" / "cli.md"
PROMPT_FILES = REFERENCE.with_name("prompt-files.md")
BEGIN, END = "<!-- commands: written by make docs -->", "<!-- /commands -->"
NAMES_BEGIN, NAMES_END = "<!-- names: written by make docs -->", "<!-- /names -->"
#: commands that read prompts: their common options are listed once
PROMPT_COMMANDS = ("render", "submit", "estimate")


def commands_text() -> str:
    """Return the prompt options, then a section for each command: usage, description, options."""
    commands: Any = get_command(app).commands  # type: ignore[attr-defined]
    common = [_entry(each) for each in commands["render"].params if each.rich_help_panel]
    names = ", ".join(f"`{name}`" for name in PROMPT_COMMANDS)
    head = ["## Prompt options", "", f"Options of {names}:", "", *common, ""]
    return "\n".join([*head, *(_section(name, command) for name, command in commands.items())])


def names_text() -> str:
    """Return the tables of other tools' names for fields, and of names without effect."""
    lines = ["| name | field | written by | |", "|---|---|---|---|"]
    for alias in FIELD_ALIASES:
        where = "" if alias.dialect is Dialect.LONG else f"only in {alias.dialect}"
        rule = "only if the row has no other prompt" if alias.weak else ""
        remarks = "; ".join(filter(None, [where, alias.remark, rule]))
        lines.append(f"| {_names(alias)} | {_fields(alias)} | {alias.tools} | {remarks} |")
    lines += ["", "Passed over, with a note:", "", "| name | written by | because |", "|---|---|---|"]
    lines += [f"| {_names(alias)} | {alias.tools} | {alias.remark} |" for alias in PASSED_ALIASES if not alias.cure]
    lines += ["", "Passed over if off, refused otherwise:", "", "| name | written by |", "|---|---|"]
    lines += [f"| {_names(alias)} | {alias.tools} |" for alias in PASSED_ALIASES if alias.cure]
    return "\n".join(lines)


def reference_text() -> str:
    """Return the expected text of docs/reference/cli.md."""
    return _filled(REFERENCE, BEGIN, END, commands_text())


def prompt_files_text() -> str:
    """Return the expected text of docs/reference/prompt-files.md."""
    return _filled(PROMPT_FILES, NAMES_BEGIN, NAMES_END, names_text() + "\n")


def _filled(path: Path, begin: str, end: str, text: str) -> str:
    before, _, rest = path.read_text().partition(begin)
    return f"{before}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}"


def _names(alias: Alias) -> str:
    dashes = "--" if alias.dialect is Dialect.KOHYA else ""
    return ", ".join(f"`{dashes}{name}`" for name in alias.names)


def _fields(alias: Alias) -> str:
    return ", ".join(f"`{field}`" for field in alias.field.split(", "))


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
    PROMPT_FILES.write_text(prompt_files_text())

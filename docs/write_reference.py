"""Write the generated parts of docs/reference from the code: ``make docs``.

They are the commands of cli.md, the names of other tools in prompt-files.md, and the operations of http.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections import ChainMap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from typer.main import get_command

from latentfarm.cli import app
from latentfarm.cli.command_group import parameter_help, parameter_names
from latentfarm.server.api import OPERATIONS
from latentfarm.server.http.operation import Scope
from latentfarm.submission.prompts.aliases import FIELD_ALIASES, PASSED_ALIASES, Alias, Dialect

REFERENCE = Path(__file__).parent / "reference" / "cli.md"
PROMPT_FILES = REFERENCE.with_name("prompt-files.md")
HTTP = REFERENCE.with_name("http.md")
BEGIN, END = "<!-- commands: written by make docs -->", "<!-- /commands -->"
NAMES_BEGIN, NAMES_END = "<!-- names: written by make docs -->", "<!-- /names -->"
OPERATIONS_BEGIN, OPERATIONS_END = "<!-- operations: written by make docs -->", "<!-- /operations -->"
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


def http_text() -> str:
    """Return the expected text of docs/reference/http.md."""
    return _filled(HTTP, OPERATIONS_BEGIN, OPERATIONS_END, operations_text())


def operations_text() -> str:
    """Return a table of the operations, then the fields of their queries, bodies and answers."""
    lines = ["## Requests", "", "| request | does | scope | query, body | answer |", "|---|---|---|---|---|"]
    taken_models: dict[str, type[BaseModel]] = {}
    given_models: dict[str, type[BaseModel]] = {}
    for each in OPERATIONS:
        inputs = [model for model in (each.query, each.body, each.form) if model is not None and model.model_fields]
        for model in inputs:
            _add_model(taken_models, model)
        if each.answer is not None:
            _add_model(given_models, each.answer)
        taken = ", ".join(_model_link(model.__name__) for model in inputs)
        given = _model_link(each.answer.__name__) if each.answer else f"`{each.media_type}`"
        scope, answer = "" if each.scope is Scope.NONE else each.scope, f"{each.status} {given}"
        lines.append(f"| `{each.method} {each.path}` | {each.summary} | {scope} | {taken} | {answer} |")
    lines += ["", "## Queries and bodies", ""]
    for name in sorted(taken_models):
        lines += [f"### {name}", "", *_model_lines(taken_models[name], answer=False), ""]
    lines += ["## Answers", ""]
    for name in sorted(given_models):
        lines += [f"### {name}", "", *_model_lines(given_models[name], answer=True), ""]
    return "\n".join(lines)


def _add_model(found: dict[str, type[BaseModel]], model: type[BaseModel]) -> None:
    """Add a model and those that its fields have."""
    found[model.__name__] = model
    definitions = model.model_json_schema().get("$defs", {})
    # a field of a base has a model that the base's module knows
    known = ChainMap(*(vars(sys.modules[base.__module__]) for base in model.__mro__))
    for name, schema in definitions.items():
        # those of a field's own fields are known where that one is
        if "properties" in schema and name in known and name not in found:
            _add_model(found, known[name])


def _model_lines(model: type[BaseModel], *, answer: bool) -> Iterator[str]:
    yield from (model.__doc__ or "").replace("``", "`").replace("\n    ", "\n").strip().splitlines()
    schema = model.model_json_schema(mode="serialization" if answer else "validation")
    required = () if answer else schema.get("required", ())
    yield ""
    for name, field in schema["properties"].items():
        plain = not answer and "default" in field and "$ref" not in field
        default = f" [default: `{json.dumps(field['default'])}`]" if plain else ""
        kind = _type(field, schema.get("$defs", {}))
        yield f"- `{name}`: {kind}{', required' if name in required else ''}{default}"


def _type(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return a JSON schema in words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        found = definitions[name]
        return _type(found, definitions) if "enum" in found else _model_link(name)
    if "anyOf" in field:
        return " or ".join(_type(each, definitions) for each in field["anyOf"])
    if "enum" in field:
        return "one of " + ", ".join(f"`{word}`" if word else "empty" for word in field["enum"])
    kind = field.get("type") or field["description"]
    if kind == "array":
        return f"list of {_type(field['items'], definitions)}"
    if kind == "object" and "properties" in field:
        return f"object with any of {', '.join(f'`{name}`' for name in field['properties'])}"
    words = {"maxLength": "at most {} characters", "minimum": "from {}", "maximum": "to {}"}
    limits = " ".join(text.format(f"{field[name]:,}") for name, text in words.items() if name in field)
    return " ".join(filter(None, (" or ".join(kind) if isinstance(kind, list) else kind, limits)))


def _model_link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


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
    HTTP.write_text(http_text())

"""A command line that imports a command's module only if the command is used, with one line of help per option."""

from __future__ import annotations

import gc
from collections.abc import Iterator, MutableMapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from latentfarm.cli.command_line import problem_of
from latentfarm.cli.output import discard_stdout

#: the value of --keep-columns if none is given
ALL_COLUMNS = "*"
#: options whose value may be left out, and the value that this means
_OPTIONAL_VALUES = {"--keep-columns": ALL_COLUMNS}
_HEADING_ORDER = {"Arguments": 0, "Options": 1}


class CommandEntry(NamedTuple):
    """One command: ``module:function`` below ``latentfarm.cli``, and its summary in the list of commands."""

    target: str
    summary: str


class _LazyCommands(MutableMapping[str, Any]):
    """The commands by name. A command is imported when it is read."""

    def __init__(self, entries: dict[str, CommandEntry]) -> None:
        self._entries = entries
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            module, _, function = self._entries[name].target.partition(":")
            # imported objects live until exit: collecting garbage meanwhile costs a tenth of the start
            gc.disable()
            loaded = import_module(f"latentfarm.cli.{module}")
            gc.freeze()
            gc.enable()
            self._loaded[name] = _as_command(name, getattr(loaded, function))
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]


def make_group(commands: dict[str, dict[str, CommandEntry]]) -> type[TyperGroup]:
    """Return the class of a root command with these commands by heading. Its help imports none of them."""
    entries = {name: entry for group in commands.values() for name, entry in group.items()}
    width = max(map(len, entries))

    class CommandGroup(TyperGroup):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.commands = _LazyCommands(entries)

        def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 (typer passes it)
            return list(entries)

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args[:1] == ["help"]:
                args = [*args[1:2], "--help"]
            if args and not ctx.resilient_parsing and (problem := _problem_before_command(self, ctx, args[0])):
                ctx.fail(problem)
            return super().parse_args(ctx, args)

        def invoke(self, ctx: Any) -> Any:
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                # typer would exit with 1, which means that a job failed
                discard_stdout()
                raise SystemExit(0) from None

        def format_options(self, ctx: Any, formatter: Any) -> None:
            for heading, group in commands.items():
                with formatter.section(heading):
                    formatter.write_dl([(name.ljust(width), entry.summary) for name, entry in group.items()])
            _write_parameters(self, ctx, formatter)

    return CommandGroup


class Command(TyperCommand):
    """A command whose usage and options are printed as by uv and ruff."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the command's name."""
        if not ctx.resilient_parsing and (
            problem := problem_of(self.get_params(ctx), args, optional_values=_OPTIONAL_VALUES)
        ):
            ctx.fail(problem)
        given = _with_values(args, greedy=True)
        try:
            return super().parse_args(ctx, list(given))
        except typer.BadParameter:
            # the word after the option was an argument, not the option's value
            spared = _with_values(args, greedy=False)
            if spared == given:
                raise
            return super().parse_args(ctx, spared)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words after the command's name in its usage."""
        arguments = (each for each in self.get_params(ctx) if each.param_type_name == "argument")
        return [str(self.options_metavar), *(str(each.metavar) for each in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options under their headings."""
        _write_parameters(self, ctx, formatter)


def parameter_names(parameter: Any) -> str:
    """Return an option's names and metavar, such as ``-o, --output DIR``, or an argument's metavar."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    names = ", ".join(sorted(parameter.opts, key=len))
    if parameter.secondary_opts:
        return f"{names} / {', '.join(parameter.secondary_opts)}"
    return names if parameter.is_flag else f"{names} {parameter.metavar}"


def parameter_help(parameter: Any) -> str:
    """Return the text of an option or argument, with its default unless the text states one."""
    text = str(parameter.help).rstrip(".")
    if parameter.param_type_name == "argument":
        return text
    if parameter.required:
        return f"{text} [required]"
    no_default = parameter.is_flag or parameter.default in {None, ""} or not parameter.show_default
    return text if no_default else f"{text} [default: {_plain(parameter.default)}]"


def _problem_before_command(group: Any, ctx: Any, word: str) -> str | None:
    """Return what is wrong with an option that is written before the command; None if nothing is."""
    names = {name for each in group.get_params(ctx) for name in each.opts}
    if not word.startswith("-") or word in {*names, "-", "--"}:
        return None
    if word.lower() in {"-v", "-version"}:
        return f"No such option: {word}; did you mean --version?"
    if close := get_close_matches(word, [each for each in names if each.startswith("--")], cutoff=0.8):
        return f"No such option: {word}; did you mean {close[0]}?"
    return f"No such option: {word}; the options of a command follow its name, as in `latentfarm status --json`"


def _with_values(args: list[str], *, greedy: bool) -> list[str]:
    """Return the words with the value of each option that has none; ``greedy`` takes the word after it as its value."""
    found: list[str] = []
    for at, word in enumerate(args):
        found.append(word)
        if word in _OPTIONAL_VALUES:
            following = args[at + 1 :]
            if not (greedy and following and (following[0] == "-" or not following[0].startswith("-"))):
                found.append(_OPTIONAL_VALUES[word])
    return found


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _write_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    headings: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        default_heading = "Arguments" if parameter.param_type_name == "argument" else "Options"
        heading = getattr(parameter, "rich_help_panel", None) or default_heading
        headings.setdefault(heading, []).append((parameter_names(parameter), parameter_help(parameter)))
    for heading in sorted(headings, key=lambda each: _HEADING_ORDER.get(each, len(_HEADING_ORDER))):
        with formatter.section(heading):
            formatter.write_dl(headings[heading])


def _as_command(name: str, function: Any) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name, cls=Command, context_settings=getattr(function, "context_settings", None))(function)
    return typer.main.get_command(app)

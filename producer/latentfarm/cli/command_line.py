"""The words after a command's name, checked before they are parsed: what would change its meaning is an error.

The parser takes ``-output`` for ``-o`` with a value, ``-o=DIR`` for a folder ``=DIR``, ``-o --json`` for a folder
``--json``, and the last of two values.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from latentfarm.cli.value_check import problem_of_value

#: what word processors and web pages make of a dash
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
_NUMBER = re.compile(r"-[\d.]+(e[+-]?\d+)?", re.IGNORECASE)
_MAX_SUGGESTIONS = 4


@dataclass
class _Words:
    """The options of a command by name, and what a command line has given."""

    options: Mapping[str, Any]
    optional_values: Collection[str]
    positional: list[str] = field(default_factory=list)
    values: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


def problem_of(parameters: Sequence[Any], words: Sequence[str], *, optional_values: Collection[str] = ()) -> str | None:
    """Return what is wrong with the words after a command, with its cure; None if nothing is.

    Args:
        parameters: the command's arguments and options.
        words: the words after its name.
        optional_values: names of options whose value may be left out.
    """
    options = {name: each for each in parameters for name in (*each.opts, *each.secondary_opts) if name.startswith("-")}
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    read = _Words(options, optional_values)
    return (
        next(_problems(read, words), None)
        or _repeated(read)
        or _too_many(read, arguments)
        or next(_problems_of_arguments(read, arguments), None)
    )


def _problems(read: _Words, words: Sequence[str]) -> Iterator[str]:
    left = list(reversed(words))
    while left:
        word = left.pop()
        if word == "--":
            read.positional += reversed(left)
            return
        if word[:1] and word[0] in _DASHES:
            yield f"{word!r} begins with a dash that is not '-', as web pages write it; write {_with_hyphens(word)}"
        elif not word.startswith("-") or word == "-" or _is_argument(read, word):
            read.positional.append(word)
        elif problem := _problem_of_option(read, word, left):
            yield problem


def _problem_of_option(read: _Words, word: str, left: list[str]) -> str | None:
    """Return what is wrong with an option and its value, which is taken from the words that are left."""
    name, equals, value = word.partition("=")
    if problem := _problem_of_name(read.options, name, equals + value):
        return problem
    if name not in read.options:
        # a short option with its value, such as -oDIR
        name, equals, value = word[:2], "=", word[2:]
    option = read.options[name]
    if option.is_flag or (name in read.optional_values and not equals):
        value = ""
    elif not equals:
        if not left:
            # the parser reports that the value is missing
            return None
        value = left.pop()
        if re.match("--[A-Za-z]", value) or value in read.options:
            long = max(option.opts, key=len)
            return f"{name} has no value: {value!r} is an option; if it is the value, write {long}={value}"
    read.values.setdefault(option.name, []).append((name, value))
    return None if option.is_flag or name in read.optional_values else problem_of_value(option, name, value)


def _is_argument(read: _Words, word: str) -> bool:
    return bool(_NUMBER.fullmatch(word)) and word[:2] not in read.options


def _problem_of_name(options: Mapping[str, Any], name: str, value: str) -> str | None:
    """Return what is wrong with a word that begins with a dash; ``value`` is the part from its equals sign on."""
    if name in options:
        short = len(name) == 2
        if short and value and not options[name].is_flag:
            long = max(options[name].opts, key=len)
            return f"{name}{value} would be {name} with the value {value!r}; write {name} {value[1:]} or {long}{value}"
        return None
    if not name.startswith("--"):
        longer = [each for each in options if each.startswith(f"-{name}") and len(name) > 2]
        if longer:
            return f"{name} is not an option; write {longer[0]}, with two dashes"
        if name[:2] in options and not options[name[:2]].is_flag:
            return None
    return f"No such option: {name}; {_cure(options, name, value)}"


def _cure(options: Mapping[str, Any], name: str, value: str) -> str:
    if name in {"--version", "-V"}:
        return "write latentfarm --version"
    if Path(name + value).exists():
        return f"if it is a file or folder, write ./{name}{value}"
    if found := suggestions(options, name):
        return f"did you mean {' or '.join(found)}?"
    return "-h lists the options"


def suggestions(options: Collection[str], name: str) -> list[str]:
    """Return the options that were probably meant by a name, such as ``--steps``, ``--sed`` or ``-n4``."""
    long = [each for each in options if each.startswith("--") and each != "--help"]
    if not name.startswith("--"):
        # a short option of another tool, perhaps with its value
        letter = name[1:2].lower()
        same_letter = [each for each in long if each[2] == letter]
        return list(dict.fromkeys([*_of_other_tools(letter, long), *same_letter]))[:_MAX_SUGGESTIONS]
    wanted = name.lower().lstrip("-").replace("_", "-")
    # the name may be only a part, as in --intermediates
    return (
        _of_other_tools(wanted, long)
        or get_close_matches(f"--{wanted}", long, n=_MAX_SUGGESTIONS)
        or [each for each in long if wanted in each][:_MAX_SUGGESTIONS]
    )


def _of_other_tools(name: str, long: Collection[str]) -> list[str]:
    # imported here: only an error needs it
    from latentfarm.submission.prompts.aliases import FIELD_ALIASES, Dialect, normalize

    aliases = [each for each in FIELD_ALIASES if each.dialect is Dialect.LONG and normalize(name) in each.names]
    named = [f"--{field.replace('_', '-')}" for each in aliases for field in each.field.split(", ")]
    return [each for each in named if each in long]


def _repeated(read: _Words) -> str | None:
    for option in read.options.values():
        given = read.values.get(option.name, [])
        if option.multiple or len({name if option.is_flag else value for name, value in given}) < 2:
            continue
        (first, one), (second, other) = given[0], given[-1]
        if option.is_flag:
            return f"{first} and {second} contradict each other; write one of them"
        return f"{second} has two values, {one!r} and {other!r}; write it once"
    return None


def _too_many(read: _Words, arguments: Sequence[Any]) -> str | None:
    if any(each.nargs < 0 for each in arguments) or len(read.positional) <= len(arguments):
        return None
    extra = read.positional[len(arguments)]
    if not arguments:
        return f"{extra!r} is one word too many: the command takes options only"
    takes = " ".join(str(each.metavar) for each in arguments)
    return f"{extra!r} is one word too many: the command takes {takes}; quote a name that contains spaces"


def _problems_of_arguments(read: _Words, arguments: Sequence[Any]) -> Iterator[str]:
    if all(each.nargs == 1 for each in arguments):
        # fewer words than arguments: the parser reports which is missing
        for argument, word in zip(arguments, read.positional, strict=False):
            if problem := problem_of_value(argument, str(argument.metavar), word):
                yield problem


def _with_hyphens(word: str) -> str:
    name = word.lstrip(_DASHES + "-")
    return f"-{name}" if len(name) == 1 else f"--{name}"

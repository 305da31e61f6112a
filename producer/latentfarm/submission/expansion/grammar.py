"""Parse the grammar of dynamic prompts into a tree.

The grammar is that of the PyPI library ``dynamicprompts`` (docs/SYNTAX.md in adieyal/dynamicprompts), with escapes. The
library itself is not used: it refuses ordinary text such as ``50% off`` and ``$5``, renders an unknown wildcard as
text, and draws from one sequence of random numbers, so that its next version may choose differently for the same seed.

Every text is either a tree or an error: what looks like syntax and is not valid is never text. The work grows linearly
with the text's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from latentfarm.submission.expansion.comments import strip_comments
from latentfarm.submission.expansion.weights import ChoiceError, Weights, parse_weight

#: nested braces; also wildcards in wildcards
MAX_DEPTH = 20
_MAX_CHARACTERS = 65_536
DEFAULT_JOINER = ", "
RANDOM, CYCLICAL, COMBINATORIAL = "~", "@", "!"

_ESCAPED = re.compile(r"\\([{}|_$%#@!~/])")
#: text without special characters
_PLAIN = re.compile(r"[^\\{}|_$%]+")
_PLAIN_IN_WILDCARD = re.compile(r"[^\\{}|_$%(),]+")
_HEAD = re.compile(r"\s*(?P<sampler>[@~!])?\s*(?:(?P<least>\d{1,9})?(?P<dash>-)?(?P<most>\d{1,9})?(?P<bound>\$\$))?")
_JOINER = re.compile(r"((?:\\[{}$|]|[^{}$\\]|\\(?![{}$|]))*)\$\$")
_NAME = re.compile(r"\s*([A-Za-z_-][A-Za-z0-9_-]*)\s*")
_ASSIGNED = re.compile(r"(?P<keep>\?)?\s*=\s*(?P<immediate>!)?")
#: {% for and {{ choice(; but {{ name }} is a choice of one choice
_JINJA = re.compile(r"\{%|\{\{\s*[A-Za-z_]\w{0,30}\(")
_PARAMETER = re.compile(r"\s*([A-Za-z_-][A-Za-z0-9_-]*)\s*=")


@dataclass(frozen=True, slots=True)
class Choice:
    """``{a|b}``: ``least`` to ``most`` of the options; None is as many as there are."""

    options: tuple[Template, ...]
    weights: Weights
    sampler: str = ""
    least: int = 1
    most: int | None = 1
    joiner: str = DEFAULT_JOINER


@dataclass(frozen=True, slots=True)
class Wildcard:
    """``__name__``, with values for variables in its lines."""

    name: Template
    sampler: str = ""
    variables: tuple[tuple[str, Template], ...] = ()


@dataclass(frozen=True, slots=True)
class Variable:
    """``${name}`` or ``${name:default}``."""

    name: str
    default: Template | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """``${name=value}``: ``!`` chooses the value once, ``?`` keeps a value from outside."""

    name: str
    value: Template
    immediate: bool
    keep: bool


@dataclass(frozen=True, slots=True)
class Wrapping:
    """``%{before ... after$$inner}``."""

    wrapper: Template
    inner: Template


Part = str | Choice | Wildcard | Variable | Wrapping


@dataclass(frozen=True, slots=True)
class Template:
    """A sequence of texts and choices. Its assignments come first, wherever they are written."""

    parts: tuple[Part, ...]
    assignments: tuple[Assignment, ...] = ()
    #: whether it had comments
    commented: bool = False


@lru_cache(maxsize=1024)
def parse(text: str) -> Template:
    """Return the tree of a text.

    Raises:
        ChoiceError: the text is invalid.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ChoiceError(f"it has {len(text):,} characters; shorten it to {_MAX_CHARACTERS:,}")
    stripped = strip_comments(text)
    template = _Parser(stripped).template()
    return replace(template, commented=True) if len(stripped) < len(text) else template


class _Parser:
    """Reads one text from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def template(self) -> Template:
        return self._sequence("", 0)

    def _sequence(self, ends: str, depth: int) -> Template:
        """Read up to one of ``ends``, which is left unread. Only the whole text, without ``ends``, has assignments."""
        if depth > MAX_DEPTH:
            raise ChoiceError(f"choices are nested over {MAX_DEPTH} deep; does a wildcard contain itself?")
        parts: list[Part] = []
        assignments: list[Assignment] = []
        run: list[str] = []
        for part in self._parts(ends, depth):
            if isinstance(part, str):
                run.append(part)
            elif isinstance(part, Assignment):
                if any(part.name == other.name for other in assignments):
                    raise ChoiceError(f"variable {part.name} is assigned twice; use two names")
                assignments.append(part)
            else:
                parts += ["".join(run), part] if run else [part]
                run.clear()
        return Template((*parts, "".join(run)) if run else tuple(parts), tuple(assignments))

    def _parts(self, ends: str, depth: int) -> Iterator[Part | Assignment]:
        text, brackets = self._text, 0
        run = _PLAIN_IN_WILDCARD if "(" in ends or ")" in ends else _PLAIN
        while self._at < len(text):
            at = self._at
            if plain := run.match(text, at):
                self._at = plain.end()
                yield plain[0]
                continue
            character, pair = text[at], text[at : at + 2]
            if character == "\\" and (escaped := _ESCAPED.match(text, at)):
                self._at = escaped.end()
                yield escaped[1]
                continue
            if self._is_end(character, pair, ends, brackets):
                return
            if pair == "${":
                yield self._variable(depth, assignable=not ends)
            elif pair == "%{":
                yield self._wrapping(depth)
            elif character == "{":
                yield self._choice(depth)
            elif pair == "__" and self._opens_wildcard():
                yield self._wildcard(depth)
            else:
                # in a value of a wildcard's variable, (a:1.2) is text
                brackets += (character == "(") - (character == ")")
                self._at += 1
                yield character

    def _is_end(self, character: str, pair: str, ends: str, brackets: int) -> bool:
        if pair == "$$" and ends:
            if "$" in ends:
                return True
            if "_" not in ends and "}" in ends:
                raise ChoiceError(r"$$ has no number before it; write 2$$, or \$\$ for the characters themselves")
        if pair == "__" and "_" in ends:
            return True
        if character == "|" and ends and "|" not in ends:
            raise ChoiceError(r"| is outside a choice; write {a|b}, or \| for the character itself")
        return character in ends and character not in "_$" and not (character in ",)" and brackets)

    def _expect(self, end: str, cure: str) -> None:
        if not self._text.startswith(end, self._at):
            raise ChoiceError(cure)
        self._at += len(end)

    def _skip_space(self) -> None:
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1

    def _choice(self, depth: int) -> Choice:
        if jinja := _JINJA.match(self._text, self._at):
            raise ChoiceError(rf"{jinja[0]} is Jinja, which is not supported; write \{{ for the brace itself")
        head = _HEAD.match(self._text, self._at + 1)
        sampler = head["sampler"] or "" if head else ""
        bounds: tuple[int, int | None] = (1, 1)
        joiner = DEFAULT_JOINER
        if head and head["bound"]:
            bounds = _bounds(head)
            self._at = head.end()
            if found := _JOINER.match(self._text, self._at):
                joiner, self._at = re.sub(r"\\([{}$|])", r"\1", found[1]), found.end()
        else:
            # without a bound, the digits and the space belong to the first option
            self._at = head.end("sampler") if head and sampler else self._at + 1
        options: list[Template] = []
        weights: list[int] = []
        while not options or self._text.startswith("|", self._at):
            # the first begins here, others after a |
            weight, self._at = parse_weight(self._text, self._at + bool(options))
            weights.append(weight)
            options.append(self._sequence("|}", depth + 1))
        self._expect("}", r"a { is not closed; write }, or \{ for the brace itself")
        return Choice(tuple(options), Weights.of(weights), sampler, *bounds, joiner)

    def _variable(self, depth: int, *, assignable: bool) -> Variable | Assignment:
        unclear = r"${ begins a variable; write ${name}, ${name:default} or ${name=value}, or \$ for the dollar sign"
        name = _NAME.match(self._text, self._at + 2)
        if name is None:
            raise ChoiceError(unclear)
        self._at = name.end()
        if assigned := _ASSIGNED.match(self._text, self._at):
            if not assignable:
                raise ChoiceError(
                    f"variable {name[1]} is assigned inside braces; assign it outside, or write ${{{name[1]}:default}}"
                )
            self._at = assigned.end()
            value = self._value(depth)
            self._expect("}", unclear)
            return Assignment(name[1], value, bool(assigned["immediate"]), bool(assigned["keep"]))
        default = None
        if self._text.startswith(":", self._at):
            self._at += 1
            default = self._value(depth)
        self._expect("}", unclear)
        return Variable(name[1], default)

    def _value(self, depth: int, ends: str = "}") -> Template:
        return _stripped(self._sequence(ends, depth + 1))

    def _wrapping(self, depth: int) -> Wrapping:
        unclear = r"%{ wraps a text; write %{before ... after$$text}, or \% for the percent sign"
        self._at += 2
        self._skip_space()
        wrapper = self._sequence("$}", depth + 1)
        self._expect("$$", unclear)
        self._skip_space()
        inner = self._sequence("}", depth + 1)
        self._expect("}", unclear)
        return Wrapping(wrapper, inner)

    def _opens_wildcard(self) -> bool:
        """Whether the ``__`` here opens a wildcard: text follows, and ``__`` closes it in the same alternative."""
        text, at = self._text, self._at + 2
        if text[at : at + 1] in ("", "_") or text[at].isspace():
            return False
        level = 0
        while at < len(text):
            if text[at] == "\\":
                at += 1
            elif text[at] == "{":
                level += 1
            elif level:
                level -= text[at] == "}"
            elif text[at] in "|}":
                return False
            elif text.startswith("__", at):
                return True
            at += 1
        return False

    def _wildcard(self, depth: int) -> Wildcard:
        self._at += 2
        sampler = self._text[self._at] if self._text[self._at] in "~@!" else ""
        self._at += len(sampler)
        name = self._sequence("_(", depth + 1)
        variables: list[tuple[str, Template]] = []
        if self._text.startswith("(", self._at):
            name = _stripped(name)
            while not variables or self._text.startswith(",", self._at):
                variables.append(self._parameter(depth))
            self._expect(")", "the values of a wildcard are not closed; write __name(a=1, b=2)__")
            self._skip_space()
        self._expect("__", r"a wildcard is not closed; write __name__ or __name(a=1)__, or \__ for the text itself")
        return Wildcard(name, sampler, tuple(variables))

    def _parameter(self, depth: int) -> tuple[str, Template]:
        name = _PARAMETER.match(self._text, self._at + 1)
        if name is None:
            raise ChoiceError(r"a ( in a wildcard begins its values; write __name(a=1)__, or \__ for the text itself")
        self._at = name.end()
        return name[1], self._value(depth, ",)")


def _bounds(head: re.Match[str]) -> tuple[int, int | None]:
    """Return least and most; ``-2`` is one or two, ``2-`` is at least two."""
    least, most = head["least"], head["most"]
    if not least and not most:
        raise ChoiceError(r"$$ has no number before it; write 2$$, or \$\$ for the characters themselves")
    if not head["dash"]:
        return int(least), int(least)
    bounds = int(least or 1), int(most) if most else None
    if bounds[1] is not None and bounds[1] < bounds[0]:
        raise ChoiceError(f"{head[0].strip()} is reversed; write {bounds[1]}-{bounds[0]}$$")
    return bounds


def _stripped(template: Template) -> Template:
    """Return a value without white space at its ends."""
    parts = list(template.parts)
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return Template(tuple(part for part in parts if part != ""))

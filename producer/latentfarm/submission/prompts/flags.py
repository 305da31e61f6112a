"""Inline flags of a text line, as A1111's "Prompts from file or textbox" and kohya's sd-scripts write them.

A *flag* is ``--`` and an ASCII letter, at the start of the line or after white space. Its name ends at the next white
space. So ``a cat -- sleeping`` and ``well--known`` are prompts, and ``a cat --sleeping`` is an error. ``aliases`` has
the fields that flags set.

The first flag of a line decides how values end:

- *kohya*: the first flag is one of kohya's, in either case. The prompt is the text before it. A value ends at the next
  flag and has no quotes: ``a cat --n blurry, low quality --w 512 --h 768 --d 7 --s 30 --l 7.5``.
- *A1111*: any other flag. The line from this flag on is split into words like a POSIX shell does. The prompt is either
  the text before the flag or the value of ``--prompt``. A value is one word; those of ``--prompt`` and
  ``--negative_prompt`` end at the next flag:
  ``--prompt "a cat" --negative_prompt blurry, dark --steps 20 --sampler_name "Euler a"``.
  A word that contains white space was quoted, so it is not a flag.

Both accept all flags, each once. A line with unreadable flags is an error, never a prompt. So is a line with a single
dash, a letter and perhaps a number, such as ``a cat -n4 -H512``: other tools read flags there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from difflib import get_close_matches

from latentfarm.submission.prompts.aliases import ALIASES, Dialect
from latentfarm.submission.prompts.columns import FIELDS
from latentfarm.submission.prompts.rows import (
    FieldError,
    Fields,
    ParsedRow,
    RowCheck,
    RowError,
    abbreviate,
    value_error,
)

_KOHYA = frozenset(name for name, alias in ALIASES[Dialect.KOHYA].items() if alias.dialect is Dialect.KOHYA)
#: the flags that an error proposes
_FLAGS = sorted({name for name, alias in ALIASES[Dialect.KOHYA].items() if alias.field} | FIELDS)
#: the flags that an error lists
_LISTED = ("n", "w", "h", "d", "s", "l", "prompt", "negative_prompt", "seed", "steps", "cfg_scale", "width", "height")
_LONG_TEXTS = frozenset({"prompt", "negative_prompt"})

_WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))
_FLAG = re.compile(r"(?:^|(?<=\s))--([A-Za-z]\S*)")
_FLAG_WORD = re.compile(r"--([A-Za-z]\S*)")
_SHORT_FLAG = re.compile(r"(?:^|(?<=\s))-[A-Za-z](?:\d+(?:\.\d+)?)?(?=\s|$)")


class _FlagError(Exception):
    """A line's flags are unreadable: (problem and cure, reason)."""


def has_flags(line: str) -> bool:
    """Return whether a stripped line contains a flag."""
    return _FLAG.search(line) is not None or _SHORT_FLAG.search(line) is not None


def check_line(place: str, check: RowCheck, line: str) -> ParsedRow:
    """Return the row of a line with flags, or its error."""
    try:
        return check.check(place, _fields(line, check))
    except _FlagError as error:
        text, reason = error.args
        return RowError(f"{place}: {text}", reason)
    except FieldError as error:
        return value_error(place, error)


def _fields(line: str, check: RowCheck) -> Fields:
    """Return a line's fields."""
    first = _FLAG.search(line)
    prompt = line if first is None else line[: first.start()].rstrip()
    if short := _SHORT_FLAG.search(prompt):
        problem = f"{abbreviate(short[0])} looks like a flag; write flags as --steps 30, or a space after the dash"
        raise _FlagError(problem, "single dash")
    assert first is not None  # noqa: S101 - the caller has checked has_flags
    pairs = _kohya_pairs(line) if first[1].lower() in _KOHYA else _a1111_pairs(line[first.start() :])
    found = check.collect(_known_pairs(pairs, check), dialect=Dialect.KOHYA, dashes="--")
    if prompt and "prompt" in found.own:
        text = abbreviate(found.own["prompt"])
        raise _FlagError(f"flag --prompt {text} sets prompt a second time; write it once", "flag --prompt")
    if prompt:
        found.own["prompt"] = prompt
    if not found.own.get("prompt"):
        raise _FlagError("prompt is missing; write it before the flags", "prompt is missing")
    return found


def _known_pairs(pairs: list[tuple[str, str]], check: RowCheck) -> Iterator[tuple[str, str]]:
    """Yield the flags in lower case and their values. A flag without effect needs no value."""
    seen: set[str] = set()
    for written, text in pairs:
        name = written.lower()
        meaning = check.names.meaning(name, Dialect.KOHYA)
        if meaning is None:
            raise _unknown_flag(name)
        if name in seen:
            raise _FlagError(f"flag --{name} {abbreviate(text)} is there twice; write it once", f"flag --{name}")
        if not text and meaning.field:
            raise _FlagError(f"flag --{name} has no value; write one after it", f"flag --{name}")
        seen.add(name)
        yield name, text or "true"


def _unknown_flag(name: str) -> _FlagError:
    known = [f"--{flag}" for flag in _FLAGS]
    close = get_close_matches(f"--{name}", known, n=1) if 1 < len(name) < 40 else []
    listed = ", ".join(f"--{flag}" for flag in _LISTED)
    cure = f"did you mean {close[0]}?" if close else f"write one of {listed}, or a space after the dashes"
    quoted = abbreviate(f"--{name}")
    return _FlagError(f"flag {quoted} is not known; {cure}", f"flag {quoted[1:-1]}")


def _kohya_pairs(line: str) -> list[tuple[str, str]]:
    """Split at every flag. A value is all text up to the next flag."""
    found = list(_FLAG.finditer(line))
    ends = [*(match.start() for match in found[1:]), len(line)]
    return [(match[1], line[match.end() : end].strip()) for match, end in zip(found, ends, strict=True)]


def _a1111_pairs(text: str) -> list[tuple[str, str]]:
    """Split into a shell's words. A value is one word, or, for the long texts, all words up to the next flag."""
    try:
        words = list(_shell(text))
    except ValueError as error:
        problem = f'{abbreviate(text)} has {str(error).lower()}; write "..." around a text'
        raise _FlagError(problem, "flags' quotes") from None
    pairs: list[tuple[str, list[str]]] = []
    for word in words:
        flag = _FLAG_WORD.fullmatch(word)
        if flag:
            pairs.append((flag[1], []))
            continue
        name, values = pairs[-1]
        if values and name not in _LONG_TEXTS:
            problem = f'flag --{name} has a second value {abbreviate(word)}; write "..." around both'
            raise _FlagError(problem, f"flag --{name}")
        values.append(word)
    return [(name, " ".join(values)) for name, values in pairs]


def _shell(text: str) -> shlex.shlex:
    """Split like ``shlex.split``, but at the white space of all scripts, which ends a flag's name too."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.whitespace = _WHITE_SPACE
    lexer.commenters = ""
    return lexer

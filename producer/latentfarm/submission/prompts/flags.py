"""Inline flags of a text line, as A1111's "Prompts from file or textbox" and kohya's sd-scripts write them.

A *flag* is ``--`` and an ASCII letter, at the start of the line or after white space. Its name ends at the next white
space. So ``a cat -- sleeping`` and ``well--known`` are prompts, and ``a cat --sleeping`` is an error.

The first flag of a line decides its dialect:

- *kohya*: the first flag is one of ``--n --w --h --d --s --l``, in either case. The prompt is the text before it. A
  value ends at the next flag and has no quotes: ``a cat --n blurry, low quality --w 512 --h 768 --d 7 --s 30 --l 7.5``.
- *A1111*: any other flag. The line from this flag on is split into words like a POSIX shell does. The prompt is either
  the text before the flag or the value of ``--prompt``. A value is one word; those of ``--prompt`` and
  ``--negative_prompt`` end at the next flag:
  ``--prompt "a cat" --negative_prompt blurry, dark --steps 20 --sampler_name "Euler a"``.
  A word that contains white space was quoted, so it is not a flag.

Both dialects accept all flags, each once. A line with unreadable flags is an error, never a prompt. ``--seed -1`` is
A1111's random seed: the seed is not set.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, NamedTuple

from latentfarm.submission.prompts.rows import ParsedRow, RowCheck, RowError, abbreviate

_IMAGES = "num_images_per_prompt"

#: short names of schedulers by A1111's sampler names in lower case
_SAMPLERS = MappingProxyType(
    {
        "ddim": "ddim",
        "deis": "deis",
        "dpm++ 2m": "dpm++2m",
        "dpm++ 2m karras": "dpm++2m-karras",
        "dpm++ 2m sde": "dpm++2m-sde",
        "dpm++ 2m sde karras": "dpm++2m-sde-karras",
        "dpm2": "kdpm2",
        "dpm2 a": "kdpm2_a",
        "euler": "euler",
        "euler karras": "euler-karras",
        "euler a": "euler_a",
        "heun": "heun",
        "lcm": "lcm",
        "lms": "lms",
        "plms": "pndm",
        "unipc": "unipc",
    }
)


class _FlagError(Exception):
    """A line's flags are unreadable: (problem and cure, reason)."""


def _seed(value: str) -> str | None:
    return None if value == "-1" else value


def _count(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 8):
        raise ValueError("is invalid; write a whole number")
    return int(value)


def _scheduler(sampler: str) -> str:
    name = _SAMPLERS.get(sampler.lower())
    if name is None:
        close = get_close_matches(sampler.lower(), _SAMPLERS, n=1) if len(sampler) < 60 else []
        cure = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(_SAMPLERS)}"
        raise ValueError(f"is not supported; {cure}")
    return name


class _Flag(NamedTuple):
    """The field that a flag sets.

    ``parse`` returns its value, or None if the field stays unset. It raises a ValueError with problem and cure.
    """

    field: str
    parse: Callable[[str], object] = str


_KOHYA = {
    "n": _Flag("negative_prompt"),
    "w": _Flag("width"),
    "h": _Flag("height"),
    "d": _Flag("seed"),
    "s": _Flag("num_inference_steps"),
    "l": _Flag("guidance_scale"),
}
_A1111 = {
    "prompt": _Flag("prompt"),
    "negative_prompt": _Flag("negative_prompt"),
    "seed": _Flag("seed", _seed),
    "steps": _Flag("num_inference_steps"),
    "cfg_scale": _Flag("guidance_scale"),
    "width": _Flag("width"),
    "height": _Flag("height"),
    "sampler_name": _Flag("scheduler", _scheduler),
    "n_iter": _Flag(_IMAGES, _count),
    "batch_size": _Flag(_IMAGES, _count),
}
_FLAGS = MappingProxyType(_KOHYA | _A1111)
_LONG_TEXTS = frozenset({"prompt", "negative_prompt"})

_WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))
_FLAG = re.compile(r"(?:^|(?<=\s))--([A-Za-z]\S*)")
_FLAG_WORD = re.compile(r"--([A-Za-z]\S*)")


def has_flags(line: str) -> bool:
    """Return whether a stripped line contains a flag."""
    return _FLAG.search(line) is not None


def check_line(place: str, check: RowCheck, line: str) -> ParsedRow:
    """Return the row of a line with flags, or its error."""
    try:
        own, labels = _fields(line)
    except _FlagError as error:
        text, reason = error.args
        return RowError(f"{place}: {text}", reason)
    return check.fields(place, own, {}, labels=labels)


def _fields(line: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a line's fields, and the flag that set each."""
    first = _FLAG.search(line)
    assert first is not None  # noqa: S101 - the caller has checked has_flags
    prompt = line[: first.start()].rstrip()
    pairs = _kohya_pairs(line) if first[1].lower() in _KOHYA else _a1111_pairs(line[first.start() :])
    own: dict[str, Any] = {"prompt": prompt} if prompt else {}
    labels: dict[str, str] = {}
    seen: set[str] = set()
    for written, text in pairs:
        name, flag = _known(written)
        if name in seen or (flag.field in own and flag.field != _IMAGES):
            problem = f"flag --{name} {abbreviate(text)} sets {flag.field} a second time; write it once"
            raise _FlagError(problem, f"flag --{name}")
        value = _value(name, flag, text)
        if isinstance(value, int):
            # the numbers of images of --n_iter and --batch_size multiply
            value *= own.get(flag.field, 1)
        seen.add(name)
        labels[flag.field] = f"--{name}"
        if value is not None:
            own[flag.field] = value
    if not own.get("prompt"):
        raise _FlagError("prompt is missing; write it before the flags", "prompt is missing")
    return own, labels


def _known(written: str) -> tuple[str, _Flag]:
    name = written.lower()
    if name in _FLAGS:
        return name, _FLAGS[name]
    known = [f"--{flag}" for flag in _FLAGS]
    close = get_close_matches(f"--{name}", known, n=1) if 1 < len(name) < 40 else []
    cure = f"did you mean {close[0]}?" if close else f"write one of {', '.join(known)}, or a space after the dashes"
    quoted = abbreviate(f"--{name}")
    raise _FlagError(f"flag {quoted} is not known; {cure}", f"flag {quoted[1:-1]}")


def _value(name: str, flag: _Flag, text: str) -> object:
    if not text:
        raise _FlagError(f"flag --{name} has no value; write one after it", f"flag --{name}")
    try:
        return flag.parse(text)
    except ValueError as error:
        raise _FlagError(f"flag --{name} {abbreviate(text)} {error}", f"flag --{name}") from None


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

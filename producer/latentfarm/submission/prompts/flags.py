"""Inline flags of a text line, as A1111's "Prompts from file or textbox" and kohya's sd-scripts write them.

The rule. A *flag* is ``--`` and an ASCII letter, at the line's beginning or after white space; what follows up to the
next white space is its name. So ``a cat -- sleeping`` and ``well--known`` are prompts; ``a cat --sleeping`` is an
error.
A line's first flag decides how the rest of the line is read:

- *kohya*: it is one of ``--n --w --h --d --s --l`` (in either case). The prompt is what stands before it. A value runs
  to the next flag, without quotes: ``a cat --n blurry, low quality --w 512 --h 768 --d 7 --s 30 --l 7.5``.
- *A1111*: it is any other. The line from there on is split into words as a POSIX shell would; the prompt is what stands
  before or the value of ``--prompt``, not both. A value is one word, but that of ``--prompt`` and ``--negative_prompt``
  runs to the next flag: ``--prompt "a cat" --negative_prompt blurry, dark --steps 20 --sampler_name "Euler a"``.
  A word with white space in it was quoted, so it is no flag.

Either way all of the flags below may be used, each once. A line whose flags cannot be read is an error, never a prompt.
``--seed -1``, A1111's random seed, is a seed that is not given.
"""

from __future__ import annotations

import re
import shlex
from difflib import get_close_matches
from types import MappingProxyType

from latentfarm.submission.prompts.rows import ParsedRow, RowCheck, RowError, shown

_KOHYA = {
    "n": "negative_prompt",
    "w": "width",
    "h": "height",
    "d": "seed",
    "s": "num_inference_steps",
    "l": "guidance_scale",
}
_A1111 = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "width": "width",
    "height": "height",
    "sampler_name": "scheduler",
    "n_iter": "num_images_per_prompt",
    "batch_size": "num_images_per_prompt",
}
_FIELD_OF = MappingProxyType(_KOHYA | _A1111)
_LONG_TEXTS = frozenset({"prompt", "negative_prompt"})

#: A1111's sampler names, in lower case, that have a plan here
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

_WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))
_FLAG = re.compile(r"(?:^|(?<=\s))--([A-Za-z]\S*)")
_FLAG_WORD = re.compile(r"--([A-Za-z]\S*)")


class _FlagError(Exception):
    """A line's flags cannot be read: (what is wrong and the cure, the reason to count by)."""


def has_flags(line: str) -> bool:
    """Tell whether a stripped line holds a flag."""
    return _FLAG.search(line) is not None


def check_line(place: str, check: RowCheck, line: str) -> ParsedRow:
    """Return the row of a line with flags, or what is wrong with it."""
    try:
        own, labels = _fields(line)
    except _FlagError as error:
        text, reason = error.args
        return RowError(f"{place}: {text}", reason)
    return check.fields(place, own, {}, labels=labels)


def _fields(line: str) -> tuple[dict[str, object], dict[str, str]]:
    """Return a line's fields, and the flag that each came from."""
    first = _FLAG.search(line)
    assert first is not None  # noqa: S101 - has_flags said so
    prompt = line[: first.start()].rstrip()
    pairs = _kohya_pairs(line) if first[1].lower() in _KOHYA else _a1111_pairs(line[first.start() :])
    own: dict[str, object] = {"prompt": prompt} if prompt else {}
    labels: dict[str, str] = {}
    images = 1
    seen: set[str] = {"prompt"} if prompt else set()
    for written, value in pairs:
        flag = _known(written)
        if not value:
            raise _FlagError(f"flag --{flag} has no value; write one after it", f"flag --{flag}")
        field = _FIELD_OF[flag]
        if flag in seen or (field in own and field != "num_images_per_prompt"):
            raise _FlagError(
                f"flag --{flag} {shown(value)} gives {field} a second time; write it once", f"flag --{flag}"
            )
        seen.add(flag)
        labels[field] = f"--{flag}"
        if field == "num_images_per_prompt":
            images *= _count(flag, value)
            own[field] = images
        elif flag == "sampler_name":
            own[field] = _scheduler(value)
        elif not (flag == "seed" and value == "-1"):
            own[field] = value
    if not own.get("prompt"):
        raise _FlagError("prompt is missing; write it before the flags", "prompt is missing")
    return own, labels


def _kohya_pairs(line: str) -> list[tuple[str, str]]:
    """Split at every flag; a value is all the text up to the next."""
    found = list(_FLAG.finditer(line))
    ends = [*(match.start() for match in found[1:]), len(line)]
    return [(match[1], line[match.end() : end].strip()) for match, end in zip(found, ends, strict=True)]


def _a1111_pairs(text: str) -> list[tuple[str, str]]:
    """Split into a shell's words; a value is one word, or for the two long texts all words up to the next flag."""
    try:
        words = list(_shell(text))
    except ValueError as error:
        raise _FlagError(
            f'{shown(text)} has {str(error).lower()}; write "..." around a text', "flags' quotes"
        ) from None
    pairs: list[tuple[str, list[str]]] = []
    for word in words:
        flag = _FLAG_WORD.fullmatch(word)
        if flag:
            pairs.append((flag[1], []))
        elif pairs[-1][1] and pairs[-1][0] not in _LONG_TEXTS:
            name = pairs[-1][0]
            raise _FlagError(
                f'flag --{name} has a second value {shown(word)}; write "..." around both', f"flag --{name}"
            )
        else:
            pairs[-1][1].append(word)
    return [(name, " ".join(values)) for name, values in pairs]


def _shell(text: str) -> shlex.shlex:
    """As ``shlex.split``, but with the white space of all scripts, which ends a flag's name too."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.whitespace = _WHITE_SPACE
    lexer.commenters = ""
    return lexer


def _known(written: str) -> str:
    flag = written.lower()
    if flag in _FIELD_OF:
        return flag
    known = [f"--{name}" for name in _FIELD_OF]
    close = get_close_matches(f"--{flag}", known, n=1) if 1 < len(flag) < 40 else []
    cure = (
        f"did you mean {close[0]}?" if close else f"write one of {', '.join(known)}, or put a blank behind the dashes"
    )
    name = shown(f"--{written}")
    raise _FlagError(f"flag {name} is not known; {cure}", f"flag {name[1:-1]}")


def _count(flag: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal() and 0 < len(value) < 8):
        raise _FlagError(f"flag --{flag} {shown(value)} is wrong; write a whole number", f"flag --{flag}")
    return int(value)


def _scheduler(sampler: str) -> str:
    name = _SAMPLERS.get(sampler.lower())
    if name is None:
        close = get_close_matches(sampler.lower(), _SAMPLERS, n=1) if len(sampler) < 60 else []
        cure = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(_SAMPLERS)}"
        raise _FlagError(f"flag --sampler_name {shown(sampler)} is not made here; {cure}", "flag --sampler_name")
    return name

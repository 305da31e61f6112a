"""The values of a command's options and arguments, checked before they are converted: an error names value and cure."""

from __future__ import annotations

import math
import os
import re
import shlex
from pathlib import Path
from typing import Any

from latentfarm.errors import InputError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def problem_of_value(parameter: Any, name: str, value: str) -> str | None:
    """Return what is wrong with the value of an option or argument, with its cure; None if nothing is.

    Args:
        parameter: the option or argument.
        name: its name on the command line.
        value: the text.
    """
    kind = parameter.type_descriptor.annotation
    if kind is Path and not value:
        # Path("") is the current folder, which an unset variable does not mean
        return f"{name} is empty; write a name, or . for the current folder"
    if kind is Path and _URL.match(value):
        # a folder "http:" would be made
        return f"{name} {value!r} is a URL; write a path of this machine"
    if kind not in {int, float}:
        return None
    number = _parse(kind, value)
    # NaN is outside of no range
    if number is None or not math.isfinite(number):
        return f"{name} {value!r} is not a {'whole ' if kind is int else ''}number; write {_example(parameter, kind)}"
    low, high = parameter.min, parameter.max
    if (low is not None and number < low) or (high is not None and number > high):
        return f"{name} {value} is out of range; write {_example(parameter, kind)}"
    return None


def check_prompt_file(file: str) -> str:
    """Return the name of a prompt file.

    Raises:
        InputError: it is empty, a URL other than s3://, or the text of a prompt.
    """
    if not file:
        raise InputError("FILE is empty; write the name of a prompt file, or - for stdin")
    if file == "-" or file.startswith("s3://") or os.path.lexists(file):
        return file
    if _URL.match(file):
        raise InputError(f"{file} is a URL; download the file, or write - and pipe it: `curl -fL {file} | ...`")
    if " " in file and not Path(file).suffix:
        raise InputError(
            f"there is no file {file!r}; a prompt is read from a file, or from stdin: "
            f"`echo {shlex.quote(file)} | latentfarm ... - --format txt`"
        )
    return file


def _parse(kind: type[int | float], value: str) -> int | float | None:
    # int() also takes digits of other scripts
    if not value.isascii():
        return None
    try:
        return kind(value)
    except ValueError:
        return None


def _example(parameter: Any, kind: type) -> str:
    low, high = parameter.min, parameter.max
    if low is not None and high is not None:
        return f"{low} to {high}"
    if low is not None:
        return f"{low} or more"
    default = getattr(parameter, "default", None)
    example = default if isinstance(default, int | float) else 512 if kind is int else 7.5
    return f"one such as {example}"

"""File names of images: a template, names that are safe on every file system, and no duplicates."""

from __future__ import annotations

import re
import string
import unicodedata
from typing import Any, NamedTuple

from latentfarm.errors import InputError
from latentfarm.image_formats import EXTENSIONS, IMAGE_FORMATS, extension_for, format_of, stem
from latentfarm.names import parse_job_name
from latentfarm.unique_names import UniqueNames

DEFAULT_TEMPLATE = "{index:06d}"
MAX_NAME_BYTES = 200

_INTEGER = re.compile(r"(0?[1-9][0-9]?)?d?")
_REAL = re.compile(r"(\.[0-9])?[fg]?")
_TEXT = re.compile("")
#: the fields of a template, and the format specifications that each allows
_FIELDS = {
    "id": _TEXT,
    "batch": _TEXT,
    "scheduler": _TEXT,
    "index": _INTEGER,
    "row": _INTEGER,
    "seed": _INTEGER,
    "width": _INTEGER,
    "height": _INTEGER,
    "num_inference_steps": _INTEGER,
    "guidance_scale": _REAL,
}
_CURE = f"write {', '.join(f'{{{name}}}' for name in _FIELDS)} and plain text, such as {{id}}-{{seed}}"
_EXTENSIONS = " or ".join(each.extension for each in IMAGE_FORMATS.values())
_LONGEST_EXTENSION = max((each.extension for each in IMAGE_FORMATS.values()), key=len)
_ANY_EXTENSION = re.compile(r"\.[A-Za-z]{3,4}\Z")
#: characters with a meaning in paths, in Windows' shell or in drive names
_RESERVED = frozenset('/\\:*?"<>|')
#: Unicode categories without a glyph: control, format, private use, surrogates, line and paragraph separators
_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
_DEVICES = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9¹²³]|LPT[0-9¹²³])\Z", re.IGNORECASE)


class _Piece(NamedTuple):
    """Literal text, and the field that follows it, if any, with its format specification."""

    literal: str
    field: str | None
    spec: str


class NameTemplate:
    """A file name template such as ``{id}-{seed}``, with integers as ``{index:06d}`` and reals as ``{x:.1f}``.

    Each image gets the extension of its own format. A template with an extension requires that format of every image.
    The syntax is that of format strings, without attributes, indices and conversions.

    Raises:
        InputError: the template has an unknown field or format, or cannot make a safe name.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        known = format_of(text)
        self._extension = known.extension if known else None
        if known is None and _ANY_EXTENSION.search(text):
            raise InputError(
                f"--name-template {text!r}: images are {_EXTENSIONS}; leave the extension out, each image gets its own"
            )
        self._pieces = _parse_template(text)
        zeros = ["" if piece.field is None else format(0, piece.spec) for piece in self._pieces]
        if problem := name_problem(self._fill(zeros) + _LONGEST_EXTENSION):
            raise InputError(f"--name-template {text!r}: its names are unsafe: one {problem}")

    @property
    def always_unique(self) -> bool:
        """Whether no name needs a check: each has the index, no text of the user's and no required extension."""
        fields = {piece.field for piece in self._pieces}
        return "index" in fields and "id" not in fields and self._extension is None

    @property
    def pattern(self) -> re.Pattern[str]:
        """The pattern of the names, with any value of each field."""
        values = {_INTEGER: r"\d+", _REAL: r"\d+(\.\d+)?", _TEXT: ".+"}
        name = "".join(
            re.escape(piece.literal) + (values[_FIELDS[piece.field]] if piece.field else "") for piece in self._pieces
        )
        return re.compile(rf"{name}\.({EXTENSIONS})")

    def name(self, result: dict[str, Any]) -> str:
        """Return the file name of a job's image, with the extension of its key.

        Raises:
            InputError: the job lacks a field, its name is unsafe, or its image has another format. The text has job,
                value and cure.
        """
        extension = extension_for(result.get("key", ""))
        if self._extension not in {None, extension}:
            raise InputError(
                f"job {result['job']}: its image is {extension}, but --name-template {self.text!r} requires "
                f"{self._extension}; leave the extension out, each image gets its own"
            )
        name = self._fill([self._value(result, piece) for piece in self._pieces]) + extension
        if problem := name_problem(name):
            raise InputError(
                f"job {result['job']}: its file name {name!r} {problem}; change the field, or use {{index}} in "
                "--name-template instead"
            )
        return name

    def _fill(self, values: list[str]) -> str:
        return "".join(piece.literal + value for piece, value in zip(self._pieces, values, strict=True))

    def _value(self, result: dict[str, Any], piece: _Piece) -> str:
        if piece.field is None:
            return ""
        value = _field_value(result, piece.field)
        if value is None:
            raise InputError(
                f"job {result['job']} has no {piece.field} for --name-template {self.text!r}; use {{index}} instead"
            )
        return format(value, piece.spec)


def _parse_template(text: str) -> list[_Piece]:
    pieces = []
    try:
        for literal, field, spec, conversion in string.Formatter().parse(stem(text)):
            allowed = field is None or (field in _FIELDS and _FIELDS[field].fullmatch(spec or ""))
            if not allowed or conversion is not None:
                shown = f"{field}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}"
                raise InputError(f"--name-template {text!r}: {{{shown}}} is not known; {_CURE}")
            pieces.append(_Piece(literal, field, spec or ""))
    except ValueError as error:
        raise InputError(f"--name-template {text!r}: {error}; {_CURE}") from None
    return pieces


def _field_value(result: dict[str, Any], field: str) -> Any:
    if field == "batch":
        return parse_job_name(result["job"])[0]
    if field in {"id", "index", "row"}:
        return result.get(field)
    value = result.get("request", {}).get(field)
    return float(value) if field == "guidance_scale" and value is not None else value


def name_problem(name: str) -> str | None:
    """Return why ``name`` is not a plain, visible file name on Linux, macOS and Windows; None if it is."""
    device = _DEVICES.match(name.partition(".")[0].rstrip())
    problems = {
        "begins with a dot": name.startswith("."),
        "begins or ends with a space": name != name.strip(),
        "contains '..'": ".." in name,
        "is that of a device on Windows": device is not None,
        **{f"contains {character!r}": True for character in name if _is_reserved(character)},
        f"is over {MAX_NAME_BYTES} bytes long": len(name.encode(errors="replace")) > MAX_NAME_BYTES,
    }
    return next((problem for problem, found in problems.items() if found), None)


def _is_reserved(character: str) -> bool:
    return character in _RESERVED or unicodedata.category(character) in _INVISIBLE


def add_file_name(names: UniqueNames, name: str, job: str) -> None:
    """Add a job's file name to those in use.

    Names that differ only in case or in the encoding of an accent count as one, because some file systems do not
    distinguish them. So do names that differ only in their extension: their strips are all PNG.

    Raises:
        InputError: another job has the name; the text names both.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem(name)).casefold())
    other = names.add(folded, job)
    if other is not None:
        raise InputError(
            f"jobs {other} and {job} would both be the file {name!r} (upper and lower case count as one); "
            "add {index} to --name-template"
        )

"""File names of pictures: a template, names that are safe on every file system, and no two alike."""

from __future__ import annotations

import re
import sqlite3
import string
import unicodedata
from hashlib import blake2b
from typing import Any, Self

from latentfarm.errors import InputError
from latentfarm.image_formats import IMAGE_FORMATS, extension_for, format_of, stem
from latentfarm.names import parse_job_name

DEFAULT_TEMPLATE = "{index:06d}"
MAX_NAME_BYTES = 200

_WHOLE = re.compile(r"(0?[1-9][0-9]?)?d?")
_REAL = re.compile(r"(\.[0-9])?[fg]?")
_TEXT = re.compile("")
#: what may stand in braces, and the format that it takes
_FIELDS = {
    "id": _TEXT,
    "batch": _TEXT,
    "scheduler": _TEXT,
    "index": _WHOLE,
    "row": _WHOLE,
    "seed": _WHOLE,
    "width": _WHOLE,
    "height": _WHOLE,
    "num_inference_steps": _WHOLE,
    "guidance_scale": _REAL,
}
_CURE = f"write {', '.join(f'{{{name}}}' for name in _FIELDS)} and plain text, such as {{id}}-{{seed}}"
_ENDINGS = " or ".join(each.extension for each in IMAGE_FORMATS.values())
_LONGEST_ENDING = max((each.extension for each in IMAGE_FORMATS.values()), key=len)
#: what looks like the ending of a file
_ENDING = re.compile(r"\.[A-Za-z]{3,4}\Z")
#: characters that a path, a shell on Windows or a drive gives a meaning to
_RESERVED = frozenset('/\\:*?"<>|')
#: control, format, private characters and lone surrogates; line and paragraph separators
_UNSEEN = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
_DEVICES = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9¹²³]|LPT[0-9¹²³])\Z", re.IGNORECASE)


class NameTemplate:
    """A template such as ``{id}-{seed}``: fields in braces, whole numbers as ``{index:06d}``, reals as ``{x:.1f}``.

    Each picture gets the ending of its own format; a template that has one says that all pictures are of that format.
    It is parsed like a format string but reaches no attribute, no index and no conversion.

    Raises:
        InputError: it has another field or form, or could not make a safe name.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        known = format_of(text)
        self._ending = known.extension if known else None
        if known is None and _ENDING.search(text):
            raise InputError(
                f"--name-template {text!r}: pictures are {_ENDINGS}; leave the ending out, each gets its own"
            )
        try:
            parts = list(string.Formatter().parse(stem(text)))
        except ValueError as error:
            raise InputError(f"--name-template {text!r}: {error}; {_CURE}") from None
        for _, field, form, conversion in parts:
            allowed = field is None or (field in _FIELDS and _FIELDS[field].fullmatch(form or ""))
            if not allowed or conversion is not None:
                shown = f"{field}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
                raise InputError(f"--name-template {text!r}: {{{shown}}} is not known; {_CURE}")
        self._fields = [(field, form or "") for _, field, form, _ in parts if field is not None]
        self._literals = [literal for literal, _, _, _ in parts]
        if problem := name_problem(self._join([format(0, form) for _, form in self._fields]) + _LONGEST_ENDING):
            raise InputError(f"--name-template {text!r}: a name of it {problem}")

    @property
    def numbered(self) -> bool:
        """Whether every name is unique, safe and right by itself.

        It has the index, no text of the user's and no ending that a picture may lack.
        """
        fields = {field for field, _ in self._fields}
        return "index" in fields and not fields & {"id"} and self._ending is None

    def name(self, result: dict[str, Any]) -> str:
        """Return the file name of a job's picture; its ending is that of the picture's key.

        Raises:
            InputError: the job lacks a field, its name would not be safe, or its picture is of another format; the text
                names job, value and cure.
        """
        ending = extension_for(result.get("key", ""))
        if self._ending not in {None, ending}:
            raise InputError(
                f"job {result['job']}: its picture is {ending}, but --name-template {self.text!r} says "
                f"{self._ending}; leave the ending out, each gets its own"
            )
        values = []
        for field, form in self._fields:
            value = _value(result, field)
            if value is None:
                raise InputError(
                    f"job {result['job']} has no {field} for --name-template {self.text!r}; use {{index}} instead"
                )
            values.append(format(value, form))
        name = self._join(values) + ending
        if problem := name_problem(name):
            raise InputError(
                f"job {result['job']}: its file name {name!r} {problem}; change the field, or use {{index}} in "
                "--name-template instead"
            )
        return name

    def _join(self, values: list[str]) -> str:
        # a literal precedes each field; the last one may stand alone
        padded = [*values, *[""] * (len(self._literals) - len(values))]
        return "".join(literal + value for literal, value in zip(self._literals, padded, strict=True))


def _value(result: dict[str, Any], field: str) -> Any:
    if field == "batch":
        return parse_job_name(result["job"])[0]
    if field in {"id", "index", "row"}:
        return result.get(field)
    value = result.get("request", {}).get(field)
    return float(value) if field == "guidance_scale" and value is not None else value


def name_problem(name: str) -> str | None:
    """Return what keeps ``name`` from being one plain, visible file on Linux, macOS and Windows; None if nothing."""
    device = _DEVICES.match(name.partition(".")[0].rstrip())
    problems = {
        "begins with a dot": name.startswith("."),
        "begins or ends with a space": name != name.strip(),
        "holds '..'": ".." in name,
        "is that of a device on Windows": device is not None,
        **{f"holds {character!r}": True for character in name if _reserved(character)},
        f"is over {MAX_NAME_BYTES} bytes long": len(name.encode(errors="replace")) > MAX_NAME_BYTES,
    }
    return next((problem for problem, found in problems.items() if found), None)


def _reserved(character: str) -> bool:
    return character in _RESERVED or unicodedata.category(character) in _UNSEEN


class UniqueNames:
    """Remembers which job has which name, 16 bytes a name, in a temporary file that grows beyond a few MB of memory.

    Names that differ only in case or in how an accent is encoded are alike: a folder may move to a disk where they are.
    So are those that differ in their ending: the strips from noise to result are PNG and called as their pictures are.
    """

    def __init__(self) -> None:
        # an empty path is a temporary database: held in a cache of 2 MB, spilt to a file that is gone when closed
        self._seen = sqlite3.connect("", isolation_level=None)
        self._seen.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY, job TEXT) WITHOUT ROWID")
        self._seen.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._seen.close()

    def add(self, name: str, job: str) -> None:
        """Take in a job's name.

        Raises:
            InputError: another job has it; the text names both.
        """
        alike = unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem(name)).casefold())
        digest = blake2b(alike.encode(), digest_size=16).digest()
        inserted = self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, job)).rowcount
        if not inserted:
            [(other,)] = self._seen.execute("SELECT job FROM seen WHERE digest = ?", (digest,))
            raise InputError(
                f"jobs {other} and {job} would both be the file {name!r} (upper and lower case count as one); "
                "add {index} to --name-template"
            )

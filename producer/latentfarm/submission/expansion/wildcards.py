"""A folder of wildcards: ``name.txt`` has the texts that can replace ``__name__``, one per line."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from latentfarm.errors import InputError
from latentfarm.submission.prompts.rows import abbreviate

_MAX_FILES = 10_000
_MAX_FILE_BYTES = 16 * 2**20
_MAX_USED_BYTES = 64 * 2**20
_MAX_LISTED_NAMES = 10


@dataclass
class Wildcards:
    """The wildcards of a folder and its subfolders. All files are digested at once; lines are read at first use.

    Raises:
        InputError: the folder cannot be read, or a file in it is too large or is a link to a file outside.
    """

    folder: Path | None = None
    #: name -> sha256 of the file
    digests: dict[str, str] = field(init=False, default_factory=dict)
    _lines: dict[str, list[str]] = field(init=False, default_factory=dict)
    _used_bytes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        if not self.folder.is_dir():
            raise InputError(
                f"wildcards {self.folder}: the folder does not exist; name one with files such as animals.txt"
            )
        root = self.folder.resolve()
        for path in sorted(self.folder.rglob("*.txt")):
            if not path.is_file():
                continue
            if not path.resolve().is_relative_to(root):
                raise InputError(f"wildcards {path}: the link leads out of {self.folder}; copy the file")
            if len(self.digests) == _MAX_FILES:
                raise InputError(
                    f"wildcards {self.folder}: it has over {_MAX_FILES:,} files; name a folder of wildcards only"
                )
            name = path.relative_to(self.folder).with_suffix("").as_posix()
            self.digests[name] = hashlib.sha256(_content(path)).hexdigest()

    def lines(self, name: str) -> list[str]:
        """Return the lines of a wildcard, without blank lines and lines that begin with ``#``.

        Raises:
            InputError: the wildcard does not exist, is empty, is not UTF-8, or has changed.
        """
        if name not in self._lines:
            self._lines[name] = self._read(name)
        return self._lines[name]

    def _read(self, name: str) -> list[str]:
        if self.folder is None:
            raise InputError(f"wildcard __{name}__ has no file; name the folder of {name}.txt with --wildcards")
        if name not in self.digests:
            close = get_close_matches(name, self.digests, n=1) if len(name) < 60 else []
            known = ", ".join(list(self.digests)[:_MAX_LISTED_NAMES]) + (
                ", ..." if len(self.digests) > _MAX_LISTED_NAMES else ""
            )
            cure = f"did you mean __{close[0]}__?" if close else f"known are {known or 'none'}"
            raise InputError(f"wildcard __{abbreviate(name)[1:-1]}__ is not in {self.folder}; {cure}")
        path = self.folder / f"{name}.txt"
        content = _content(path)
        if hashlib.sha256(content).hexdigest() != self.digests[name]:
            raise InputError(f"wildcards {path} changed since the command started; run it again")
        self._used_bytes += len(content)
        if self._used_bytes > _MAX_USED_BYTES:
            raise InputError(
                f"wildcards {self.folder}: the files in use have over {_MAX_USED_BYTES:,} bytes; shorten them"
            )
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"wildcards {path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
        lines = [line for raw in text.split("\n") if (line := raw.strip()) and not line.startswith("#")]
        if not lines:
            raise InputError(f"wildcards {path} is empty; write one text per line")
        return lines


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"wildcards {path} cannot be read: {error.strerror or error}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise InputError(f"wildcards {path} has over {_MAX_FILE_BYTES:,} bytes; split it")
    return content

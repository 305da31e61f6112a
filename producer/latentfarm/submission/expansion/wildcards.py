"""A folder of wildcards: ``name.txt`` holds the texts that ``__name__`` may stand for, one a line."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from latentfarm.errors import InputError
from latentfarm.submission.prompts.rows import shown

_MAX_FILES = 10_000
_MAX_FILE_BYTES = 16 * 2**20
_MAX_USED_BYTES = 64 * 2**20
_SHOWN_NAMES = 10


@dataclass
class Wildcards:
    """The wildcards below a folder, found and digested at once, their lines read when they are first needed.

    Raises:
        InputError: the folder cannot be read, or a file in it is too large or lies elsewhere by a link.
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
                f"wildcards {self.folder}: there is no such folder; name one with files such as animals.txt"
            )
        root = self.folder.resolve()
        for path in sorted(self.folder.rglob("*.txt")):
            if not path.is_file():
                continue
            if not path.resolve().is_relative_to(root):
                raise InputError(f"wildcards {path}: the link leads out of {self.folder}; copy the file")
            if len(self.digests) == _MAX_FILES:
                raise InputError(
                    f"wildcards {self.folder}: over {_MAX_FILES:,} files; name the folder of the wildcards"
                )
            name = path.relative_to(self.folder).with_suffix("").as_posix()
            self.digests[name] = hashlib.sha256(_content(path)).hexdigest()

    def lines(self, name: str) -> list[str]:
        """Return the lines of a wildcard; blank ones and those that begin with ``#`` are left out.

        Raises:
            InputError: there is no such wildcard, or it is empty, no UTF-8, or changed.
        """
        if name not in self._lines:
            self._lines[name] = self._read(name)
        return self._lines[name]

    def _read(self, name: str) -> list[str]:
        if self.folder is None:
            raise InputError(f"wildcard __{name}__ has no file; name the folder of {name}.txt with --wildcards")
        if name not in self.digests:
            close = get_close_matches(name, self.digests, n=1) if len(name) < 60 else []
            known = ", ".join(list(self.digests)[:_SHOWN_NAMES]) + (", ..." if len(self.digests) > _SHOWN_NAMES else "")
            cure = f"did you mean __{close[0]}__?" if close else f"the known ones are {known or 'none'}"
            raise InputError(f"wildcard __{shown(name)[1:-1]}__ is not in {self.folder}; {cure}")
        path = self.folder / f"{name}.txt"
        content = _content(path)
        if hashlib.sha256(content).hexdigest() != self.digests[name]:
            raise InputError(f"wildcards {path} changed meanwhile; run the command again")
        self._used_bytes += len(content)
        if self._used_bytes > _MAX_USED_BYTES:
            raise InputError(
                f"wildcards {self.folder}: the files in use are over {_MAX_USED_BYTES:,} bytes; shorten them"
            )
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"wildcards {path}: byte {error.start + 1} is no UTF-8; save the file as UTF-8") from None
        lines = [line for raw in text.split("\n") if (line := raw.strip()) and not line.startswith("#")]
        if not lines:
            raise InputError(f"wildcards {path} is empty; write a text a line")
        return lines


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"wildcards {path} cannot be read: {error.strerror or error}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise InputError(f"wildcards {path} is over {_MAX_FILE_BYTES:,} bytes; split it")
    return content

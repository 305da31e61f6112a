"""A folder of wildcards: ``name.txt`` has the texts that can replace ``__name__``, one per line.

yaml and json files have several names each.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from latentfarm.errors import InputError
from latentfarm.submission.expansion.weights import Weights
from latentfarm.submission.expansion.wildcard_files import TREE_ENDINGS, Lines, read_tree, read_txt
from latentfarm.submission.prompts.rows import abbreviate

_MAX_FILES = 10_000
_MAX_FILE_BYTES = 16 * 2**20
_MAX_USED_BYTES = 64 * 2**20
_MAX_LISTED_NAMES = 10
#: lists made for patterns; a pattern may contain a choice
_MAX_PATTERNS = 1000


@dataclass
class Wildcards:
    """The wildcards of a folder and its subfolders. All files are digested at once; lines are read at first use.

    Raises:
        InputError: the folder cannot be read, or a file in it is too large or is a link to a file outside.
    """

    folder: Path | None = None
    #: name -> sha256 of the file; a yaml or json file is under "/" and its path
    digests: dict[str, str] = field(init=False, default_factory=dict)
    #: name -> txt file
    _txt: dict[str, str] = field(init=False, default_factory=dict)
    _lines: dict[str, Lines] = field(init=False, default_factory=dict)
    _matched: dict[str, Lines] = field(init=False, default_factory=dict)
    #: name -> files; None: yaml and json files are not read yet
    _sources: dict[str, list[str]] | None = field(init=False, default=None)
    #: the error of the first yaml or json file that is invalid
    _invalid: InputError | None = field(init=False, default=None)
    _used_bytes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        if not self.folder.is_dir():
            raise InputError(
                f"wildcards {self.folder}: the folder does not exist; name one with files such as animals.txt"
            )
        root = self.folder.resolve()
        for path in _files(self.folder):
            if not path.resolve().is_relative_to(root):
                raise InputError(f"wildcards {path}: the link leads out of {self.folder}; copy the file")
            if len(self.digests) == _MAX_FILES:
                raise InputError(
                    f"wildcards {self.folder}: it has over {_MAX_FILES:,} files; name a folder of wildcards only"
                )
            relative = path.relative_to(self.folder)
            name = f"/{relative.as_posix()}"
            if path.suffix.lower() == ".txt":
                name = relative.with_suffix("").as_posix()
                if name in self._txt:
                    raise InputError(f"wildcards {path}: {self._txt[name]} has the same name; rename one of them")
                self._txt[name] = relative.as_posix()
            self.digests[name] = hashlib.sha256(_content(path)).hexdigest()

    def lines(self, name: str) -> Lines:
        """Return the lines of a wildcard, or of all whose names match a pattern such as ``zoo*`` or ``**/cats``.

        Raises:
            InputError: the wildcard does not exist, is empty, is not UTF-8, or has changed.
        """
        if name in self._lines:
            return self._lines[name]
        if name in self._matched:
            return self._matched[name]
        wanted = re.sub(r"[\\/]+", "/", name).strip("/ \t\r\n")
        if self.folder is None:
            raise InputError(
                f"wildcard {_shown(name)} has no file; name the folder of {wanted}.txt with --wildcards, "
                r"or write \__ for the text itself"
            )
        if ".." in wanted.split("/"):
            raise InputError(f"wildcard {_shown(name)} is not in {self.folder}; write a name without '..'")
        if wanted in self._names():
            return self._named(wanted)
        if len(self._matched) == _MAX_PATTERNS:
            self._matched.clear()
        self._matched[name] = self._match(name, wanted)
        return self._matched[name]

    def _match(self, name: str, wanted: str) -> Lines:
        names = list(self._names())
        found = [known for known in names if fnmatchcase(known, wanted)]
        notes: tuple[str, ...] = ()
        if not found and not wanted.startswith("**"):
            found = [known for known in names if fnmatchcase(known, f"**/{wanted}")]
            notes = (f"wildcard {_shown(name)} is read as {', '.join(map(_shown, found[:3]))}",)
        if self._invalid is not None:
            # its names are not known
            raise self._invalid
        if not found:
            raise InputError(f"wildcard {_shown(name)} is not in {self.folder}; {self._cure(name)}")
        parts = [self._named(known) for known in sorted(found)]
        if len(parts) == 1:
            return replace(parts[0], notes=(*parts[0].notes, *notes))
        weighted = any(part.weights.vary for part in parts)
        texts = [text for part in parts for text in part.texts]
        sums = [
            part.weights.sums[place] - part.weights.start(place) for part in parts for place in range(len(part.texts))
        ]
        weights = Weights.of(sums) if weighted else Weights.equal(len(texts))
        return Lines(texts, weights, (*(note for part in parts for note in part.notes), *notes)).distinct()

    def _cure(self, name: str) -> str:
        known = list(self._names())
        close = get_close_matches(name, known, n=1) if len(name) < 60 else []
        if close:
            return f"did you mean {_shown(close[0])}?"
        listed = ", ".join(known[:_MAX_LISTED_NAMES]) + (", ..." if len(known) > _MAX_LISTED_NAMES else "")
        return f"known are {listed or 'none'}; " + r"\__ is the text itself"

    def _names(self) -> dict[str, list[str]]:
        """Return the files of each name, in which it is sought: one, or the name is not clear."""
        if self._sources is None:
            self._sources = {name: [file] for name, file in self._txt.items()}
            for key in [key for key in self.digests if key[0] == "/"]:
                try:
                    found = read_tree(self._place(key[1:]), PurePosixPath(key[1:]), self._read(key, key[1:]))
                except InputError as error:
                    self._invalid = self._invalid or error
                    continue
                for name, lines in found.items():
                    self._sources.setdefault(name, []).append(key[1:])
                    self._lines[name] = lines
            # a name in two files has no lines of its own
            for name in [name for name, files in self._sources.items() if len(files) > 1]:
                self._lines.pop(name)
        return self._sources

    def _named(self, name: str) -> Lines:
        if name not in self._lines:
            first, *others = self._names()[name]
            if others:
                raise InputError(
                    f"wildcard {_shown(name)} is in {first} and in {others[0]} of {self.folder}; rename one of them"
                )
            self._lines[name] = read_txt(self._place(first), self._read(name, first))
        return self._lines[name]

    def _place(self, file: str) -> str:
        return f"wildcards {self.folder / file if self.folder else file}"

    def _read(self, key: str, file: str) -> bytes:
        """Return a file's content, as it was when the command started."""
        content = _content((self.folder or Path()) / file)
        if hashlib.sha256(content).hexdigest() != self.digests[key]:
            raise InputError(f"{self._place(file)} changed since the command started; run it again")
        self._used_bytes += len(content)
        if self._used_bytes > _MAX_USED_BYTES:
            raise InputError(
                f"wildcards {self.folder}: the files in use have over {_MAX_USED_BYTES:,} bytes; shorten them"
            )
        return content


def _files(folder: Path) -> list[Path]:
    """Return the files of wildcards: txt, then others. A tool's .vscode/settings.json is none."""
    files = [path for path in sorted(folder.rglob("*.*")) if path.is_file()]
    others = [
        path
        for path in files
        if path.suffix.lower() in TREE_ENDINGS and not any(part[0] == "." for part in path.relative_to(folder).parts)
    ]
    return [path for path in files if path.suffix.lower() == ".txt"] + others


def _shown(name: str) -> str:
    return f"__{abbreviate(name)[1:-1]}__"


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"wildcards {path} cannot be read: {error.strerror or error}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise InputError(f"wildcards {path} has over {_MAX_FILE_BYTES:,} bytes; split it")
    return content

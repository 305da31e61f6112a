"""The folder that a batch is fetched into: it can be written to, and holds images of no other batch.

Names of images are mostly indices. So the images of a second batch would replace those of the first, and those that the
first had more of would stay between them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from latentfarm.errors import InputError
from latentfarm.fetch.atomic_files import atomic_write_bytes, write_error
from latentfarm.fetch.image_files import INTERMEDIATES_FOLDER, METADATA_FILE
from latentfarm.fetch.names import NameTemplate, name_problem
from latentfarm.fetch.options import LAYOUTS, FetchOptions
from latentfarm.fetch.report import CONTACT_SHEET, RESULTS_FILE
from latentfarm.fetch.shards import INDEX_FILE, STRIPS_FOLDER, TABLES_FOLDER

#: the record of the batch that a folder belongs to
OWNER_FILE = ".fetched-batch"
#: longer than the temporary names of files that a fetch always writes
_PROBE_NAME = ".latentfarm-can-write-here".ljust(64, "-")
_SHARD = re.compile(r"shard-\d{5,}\.tar")
_CURE = "choose another folder with -o, or --force"


@dataclass(frozen=True)
class Owner:
    """The batch that a folder belongs to: its name, and the digest of its submission."""

    batch: str
    digest: str
    #: format of the images in its shards; empty if it has none
    webdataset: str = ""

    def is_batch_of(self, other: Owner) -> bool:
        """Return whether both are the same batch. An empty digest is unknown."""
        return self.batch == other.batch and (self.digest == other.digest or "" in {self.digest, other.digest})

    def may_follow(self, before: Owner) -> bool:
        """Return whether its images may join those of the folder: of the same batch, and in shards of one format."""
        formats = {self.webdataset, before.webdataset} - {""}
        return self.is_batch_of(before) and len(formats) <= 1


class OutputFolder:
    """A folder for one batch."""

    def __init__(self, directory: Path, owner: Owner, options: FetchOptions) -> None:
        self._directory, self._owner, self._options = directory, owner, options

    def check(self) -> None:
        """Create the folder unless it exists, and check that the batch may be fetched into it.

        Raises:
            InputError: it cannot be written to, it belongs to another batch, or it has a file that is not of latentfarm
                under the name of one that the fetch writes.
        """
        check_writable(self._directory)
        if self._options.force:
            return
        found = read_owner(self._directory)
        if found is None:
            try:
                taken = next(_taken_names(self._directory, self._options), None)
            except OSError as error:
                raise InputError(f"{self._directory} cannot be read: {error.strerror}; {_CURE}") from error
            if taken is not None:
                raise _taken_error(taken)
        elif not found.is_batch_of(self._owner):
            raise InputError(
                f"{self._directory} has the images of {_describe(found, self._owner)}; {_CURE} to replace its images"
            )
        elif not self._owner.may_follow(found):
            raise InputError(
                f"{self._directory} has the batch's {found.webdataset} images; {_CURE} to replace them by "
                f"{self._owner.webdataset} images"
            )

    def require_free(self, name: str) -> None:
        """Raise InputError if a file with this name is there that is not of latentfarm."""
        file = self._directory / name
        if not self._options.force and file.exists() and read_owner(self._directory) is None:
            raise _taken_error(file)

    def claim(self) -> None:
        """Check the folder and record that it belongs to the batch. ``force`` removes the images of another batch."""
        self.check()
        found = read_owner(self._directory)
        claimed = self._owner
        if found is not None and not claimed.may_follow(found):
            _remove_images(self._directory)
        elif found is not None and not claimed.webdataset:
            claimed = replace(claimed, webdataset=found.webdataset)
        if claimed != found:
            body = json.dumps(asdict(claimed)).encode()
            atomic_write_bytes(f"{self._directory}{os.sep}{OWNER_FILE}", body)


def check_writable(directory: Path) -> None:
    """Create a folder unless it exists, and check that files can be written to it.

    Raises:
        InputError: they cannot.
    """
    probe = directory / f"{_PROBE_NAME}.{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except FileExistsError:
        raise InputError(f"{directory} cannot be written: it is not a folder; choose another with -o") from None
    except OSError as error:
        raise write_error(directory, error) from error


def read_owner(directory: Path) -> Owner | None:
    """Return the batch that a folder belongs to, None if no batch was fetched into it.

    Raises:
        InputError: the record is damaged.
    """
    file = directory / OWNER_FILE
    try:
        fields = json.loads(file.read_bytes())
        return Owner(**{name: str(value) for name, value in fields.items()})
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return _owner_by_results(directory)
        raise InputError(f"{file} cannot be read: {error.strerror}; choose another folder with -o") from None
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{file} is damaged; delete it if the folder's images may be overwritten") from None


def _owner_by_results(directory: Path) -> Owner | None:
    """Return the batch of a folder that latentfarm 0.1 has written: it has a state file and results, but no record."""
    if any((directory / f".fetched-{layout}").exists() for layout in LAYOUTS):
        for line in _lines(directory / RESULTS_FILE):
            return Owner(str(line.get("job", "")).partition("/")[0], "")
    return None


def _taken_error(file: Path) -> InputError:
    return InputError(f"{file} is there already, and no fetch has written it; {_CURE} to overwrite it")


def _describe(found: Owner, own: Owner) -> str:
    if found.batch != own.batch:
        return f"batch {found.batch}"
    return f"another batch with the name {found.batch}"


def _taken_names(directory: Path, options: FetchOptions) -> Iterator[Path]:
    """Yield the files of a folder that a fetch would overwrite."""
    folders: tuple[Path, ...]
    if options.layout == "webdataset":
        fixed = [directory / TABLES_FOLDER / name for name in (RESULTS_FILE, INDEX_FILE)]
        folders, pattern = (directory, directory / STRIPS_FOLDER), _SHARD
    else:
        fixed = [directory / name for name in (RESULTS_FILE, METADATA_FILE, CONTACT_SHEET)]
        template = NameTemplate(options.name_template)
        # names that are not made of numbers alone are checked one by one, by `require_free`
        folders = (directory, directory / INTERMEDIATES_FOLDER) if template.always_unique else ()
        pattern = template.pattern
    yield from (file for file in fixed if file.exists())
    for folder in folders:
        if folder.is_dir():
            with os.scandir(folder) as entries:
                yield from (folder / entry.name for entry in entries if pattern.fullmatch(entry.name))


def _remove_images(directory: Path) -> None:
    """Remove what an earlier fetch has written, as far as its tables name it. A file with another sha256 stays."""
    for table in (directory / RESULTS_FILE, directory / TABLES_FOLDER / RESULTS_FILE):
        for line in _lines(table):
            for file in _files_of(directory, line):
                file.unlink(missing_ok=True)
    # the tables come last: until then, a second run can continue
    tables = (directory / TABLES_FOLDER / INDEX_FILE, directory / METADATA_FILE, directory / CONTACT_SHEET)
    states = (directory / f".fetched-{layout}" for layout in LAYOUTS)
    for file in (*tables, *states, directory / TABLES_FOLDER / RESULTS_FILE, directory / RESULTS_FILE):
        file.unlink(missing_ok=True)


def _lines(table: Path) -> Iterator[dict[str, Any]]:
    try:
        with table.open("rb") as opened:
            for text in opened:
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line
    except (OSError, ValueError):
        return


def _files_of(directory: Path, line: dict[str, Any]) -> Iterator[Path]:
    """Yield the image and the strip, or the shards, that a line of ``results.jsonl`` names."""
    shard, name, strip = (str(line.get(field) or "") for field in ("shard", "file", "intermediates"))
    if _SHARD.fullmatch(shard):
        yield from (directory / shard, directory / STRIPS_FOLDER / shard)
    elif name and name_problem(name) is None and _has_sha256(directory / name, line.get("sha256")):
        yield directory / name
        folder, _, strip_name = strip.partition("/")
        if folder == INTERMEDIATES_FOLDER and strip_name and name_problem(strip_name) is None:
            yield directory / strip


def _has_sha256(file: Path, sha256: object) -> bool:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() == sha256
    except OSError:
        return False

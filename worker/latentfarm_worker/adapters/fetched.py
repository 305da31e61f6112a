"""Adapters that were fetched from a store, in folders of a cache with a bound.

A folder is filled under another name and then renamed, so a killed process leaves no half of one. Beside its files it
has their digests, by which a process checks it once before it uses it; a damaged one is fetched again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from threading import Lock

log = logging.getLogger(__name__)

_DIGESTS = ".digests.json"
_DRAFT = ".draft-"
#: seconds by which a draft is older than now when its process must be dead
_DRAFT_AGE_S = 24 * 3600.0


class FetchCache:
    """Folders of fetched files by key, at most ``max_bytes`` of them: those not used for the longest time go first.

    Several processes may use one cache. A process keeps what it has used itself. Thread-safe.

    Args:
        folder: the folder; it is made when the first adapter is fetched.
        max_bytes: bytes of all files.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = Lock()
        #: keys that this process has checked
        self._checked: set[str] = set()

    def get(self, key: str, fill: Callable[[Path], None]) -> Path:
        """Return the folder of a key. If it is not there, ``fill`` writes its files into an empty folder.

        Raises:
            OSError: the cache cannot be written to.
            Exception: what ``fill`` raises; then nothing is kept.
        """
        name = hashlib.sha256(key.encode()).hexdigest()
        folder = self._folder / name
        with self._lock:
            if name not in self._checked and folder.is_dir() and not _is_intact(folder):
                log.warning("%s: a fetched adapter is damaged; it is fetched again", folder)
                shutil.rmtree(folder, ignore_errors=True)
            if not folder.is_dir():
                self._fill(folder, fill)
            self._checked.add(name)
            with suppress(OSError):
                os.utime(folder)
        return folder

    def _fill(self, folder: Path, fill: Callable[[Path], None]) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = Path(mkdtemp(prefix=_DRAFT, dir=self._folder))
        try:
            fill(draft)
            (draft / _DIGESTS).write_text(json.dumps(_digests(draft)))
            try:
                draft.rename(folder)
            except OSError:
                # another process may have fetched it meanwhile
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._trim(folder)

    def _trim(self, newest: Path) -> None:
        """Drop the folders used longest ago until the cache is within its bound, and the drafts of dead processes."""
        found = []
        for path in self._folder.iterdir():
            with suppress(OSError):
                found.append((path.stat().st_mtime, sum(each.stat().st_size for each in path.rglob("*")), path))
        total = sum(size for _, size, _ in found)
        newest_s = newest.stat().st_mtime
        for used_s, size, path in sorted(found):
            if path.name.startswith(_DRAFT):
                drop = newest_s - used_s > _DRAFT_AGE_S
            else:
                drop = total > self._max_bytes and path.name not in self._checked and path != newest
            if drop:
                shutil.rmtree(path, ignore_errors=True)
                total -= size


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _DIGESTS:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _is_intact(folder: Path) -> bool:
    try:
        expected = json.loads((folder / _DIGESTS).read_text())
    except (OSError, ValueError):
        return False
    return bool(expected == _digests(folder))

"""The sha256 of large files, cached by path, size and time of the last change.

Hashing the weights of a model takes 10 to 20 seconds, at every start of a worker.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from latentfarm_worker.json_cache import JsonCache

log = logging.getLogger(__name__)

FILE = "digests.json"
#: size, mtime_ns, sha256
_Entry = tuple[int, int, str]


class DigestCache:
    """Digests in a file of the folder ``cache``. Without a folder, or if it is not writable, each file is hashed.

    A file that was written in place with its size and its time kept is not noticed: a tool must want that.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._file = JsonCache(cache / FILE, tuple[int, int, str]) if cache is not None else None

    def sha256(self, path: Path) -> str:
        """Return the sha256 of a file as hex digits."""
        key, before = str(path.resolve()), path.stat()
        size, changed_ns, digest = self._read().get(key, (-1, -1, ""))
        if (size, changed_ns) == (before.st_size, before.st_mtime_ns):
            return digest
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = path.stat()
        if (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
            self._write(key, (after.st_size, after.st_mtime_ns, digest))
        return digest

    def _read(self) -> dict[str, _Entry]:
        return self._file.read() if self._file is not None else {}

    def _write(self, key: str, entry: _Entry) -> None:
        """Add an entry, and drop those of files that are gone. Of two processes at once, one entry may be lost."""
        if self._file is None:
            return
        known = {path: found for path, found in self._read().items() if Path(path).exists()}
        try:
            self._file.replace(known | {key: entry})
        except OSError as error:
            log.warning("the digest of the weights is not cached: %s", error)

"""A set of names that stays small in memory, however many names there are."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b
from typing import Self

#: 96 bits: among 10**8 names, two digests agree by chance with a probability below 10**-12
_DIGEST_BYTES = 12
_CACHE_KIB = 4_000


class UniqueNames:
    """The names seen so far, each with its owner. Used for client ids, file names and duplicate prompts.

    It takes 4 MB of memory. More names go to a temporary file, about 30 bytes a name, that its closing removes.
    """

    def __init__(self) -> None:
        # an empty path names a temporary database: cached in memory, spilled to an unnamed file
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        self._database.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY, owner TEXT) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def add(self, name: str, owner: str = "") -> str | None:
        """Add a name. Return None if it is new, else the owner that it was added with."""
        digest = blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()
        if self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, owner)).rowcount:
            return None
        [(first,)] = self._database.execute("SELECT owner FROM seen WHERE digest = ?", (digest,))
        return str(first)

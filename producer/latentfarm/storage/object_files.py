"""Large objects of a bucket that workers read as files: listed, read in part, and downloaded in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from latentfarm.errors import UnavailableError
from latentfarm.storage.bucket import Bucket

#: bytes of one piece of a download
_PIECE = 8 * 1024**2


class StoredObject(NamedTuple):
    """An object in a listing: its key, the store's tag of its content, and its bytes."""

    key: str
    tag: str
    size: int


class ObjectFiles:
    """The objects of one bucket as files. Thread-safe.

    All methods raise ``UnavailableError`` as ``Bucket`` does, and ``MissingObjectError`` for a key that is not there.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    @property
    def name(self) -> str:
        """Return the bucket's name."""
        return self._bucket.name

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects whose keys begin with a prefix, in lexical order."""
        with self._bucket.translate_errors(prefix):
            pages = self._bucket.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
            for page in pages:
                for entry in page.get("Contents", []):
                    yield StoredObject(entry["Key"], entry.get("ETag", "").strip('"'), entry["Size"])

    def read(self, key: str, begin: int, count: int) -> bytes:
        """Return ``count`` bytes of an object from ``begin`` on, fewer at its end."""
        with self._bucket.translate_errors(key):
            span = f"bytes={begin}-{begin + count - 1}"
            answer = self._bucket.client.get_object(Bucket=self.name, Key=key, Range=span)
            with closing(answer["Body"]) as body:
                # a store that ignores the range sends the whole object; one that heeds it may answer with 200, too
                whole = "ContentRange" not in answer
                found: bytes = body.read(begin + count if whole else count)
        return found[begin:] if whole else found

    def download(self, key: str, path: Path) -> None:
        """Write an object to a file, piece by piece.

        Raises:
            UnavailableError: the connection broke; a part may be written.
        """
        with self._bucket.translate_errors(key):
            answer = self._bucket.client.get_object(Bucket=self.name, Key=key)
            size, written = answer.get("ContentLength"), 0
            with closing(answer["Body"]) as body, path.open("wb") as file:
                for piece in body.iter_chunks(_PIECE):
                    written += file.write(piece)
        if size is not None and written != size:
            message = f"the store sent {written:,} of {size:,} bytes of {key}"
            raise UnavailableError(message, cause="store")

"""Reads images from the bucket, with connections that stay open."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from latentfarm.errors import UnavailableError
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.parallel_get import DamagedObjectError, ParallelReader, parallel_reader


class ImageReader:
    """Reads images by key. Thread-safe."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._opened = ExitStack()
        self._reader: ParallelReader | None = None
        self._lock = threading.Lock()

    def read(self, key: str, sha256: str = "") -> bytes:
        """Return an image, compared with its sha256 if that is known.

        Raises:
            MissingObjectError: the key is not in the bucket.
            DamagedObjectError: the object has another sha256.
            UnavailableError: the store is unavailable.
        """
        reader = self._open()
        try:
            return reader(key, sha256)
        except (MissingObjectError, DamagedObjectError):
            raise
        except UnavailableError:
            # after some failures a reader is slow for a minute; a new one is not
            self.close()
            raise

    def _open(self) -> ParallelReader:
        with self._lock:
            if self._reader is None:
                self._reader = self._opened.enter_context(parallel_reader(self._bucket))
            return self._reader

    def close(self) -> None:
        """Close the connections; the next read opens new ones."""
        with self._lock:
            self._reader = None
            self._opened.close()

"""Find, check and store each input image once, however many rows name it."""

from __future__ import annotations

import hashlib
from threading import Lock
from typing import NamedTuple

from latentfarm.errors import InputError
from latentfarm.inputs.checks import check_image
from latentfarm.inputs.policy import InputPolicy
from latentfarm.inputs.sources import is_local, read_source
from latentfarm.inputs.store import digest_of, is_stored, store_input
from latentfarm.recent_cache import RecentCache
from latentfarm.storage.bucket import Bucket

#: sources and digests that are remembered; one takes about 400 bytes
_REMEMBERED = 65_536
#: bytes of images that a validation has read over the network and that its submission may store
_KEPT_BYTES = 128 * 2**20
_LOCKS = 16


class StoredInput(NamedTuple):
    """A checked input image: the digest of its bytes, and its size in pixels, rotated by EXIF."""

    digest: str
    width: int
    height: int


class InputResolver:
    """Turns sources of input images into digests. Thread-safe; its memory is bounded.

    The errors of sources are remembered too: a URL that is gone is requested once.
    """

    def __init__(self, policy: InputPolicy) -> None:
        self.policy = policy
        self._found: RecentCache[bytes, StoredInput | str] = RecentCache(_REMEMBERED)
        self._sizes: RecentCache[str, tuple[int, int]] = RecentCache(_REMEMBERED)
        self._stored: RecentCache[str, str] = RecentCache(_REMEMBERED)
        self._kept: RecentCache[str, bytes] = RecentCache(_KEPT_BYTES, size=len)
        self._locks = [Lock() for _ in range(_LOCKS)]

    def known(self, source: str, bucket: Bucket | None) -> StoredInput | InputError | None:
        """Return what an earlier ``resolve`` has found; None if there was none, or if something is left to do."""
        found = self._found.get(key_of(source))
        if isinstance(found, str):
            return InputError(found)
        return found if found is not None and (bucket is None or self._stored.get(found.digest)) else None

    def resolve(self, source: str, bucket: Bucket | None) -> StoredInput:
        """Return the input of a source.

        Args:
            source: where the image is, see ``read_source``.
            bucket: where it is stored; None: it is checked only.

        Raises:
            InputError: it cannot be read, or is not a valid image. The text is problem and cure.
            UnavailableError: the store does not answer.
        """
        known = self.known(source, bucket)
        if isinstance(known, InputError):
            raise known
        if known is not None:
            return known
        checked = self._found.get(key_of(source))
        try:
            if bucket is not None and isinstance(checked, StoredInput) and is_stored(bucket, checked.digest):
                self._stored.put(checked.digest, checked.digest)
                return checked
            found = self._read(source, bucket)
        except InputError as error:
            self._found.put(key_of(source), str(error))
            raise
        self._found.put(key_of(source), found)
        return found

    def _read(self, source: str, bucket: Bucket | None) -> StoredInput:
        data = self._kept.pop(source)
        if data is None:
            data = read_source(source, self.policy)
        digest = digest_of(data)
        # the same image of two sources is decoded and stored once
        with self._locks[int(digest[-1], 16) % _LOCKS]:
            size = self._sizes.get(digest)
            if size is None:
                size = check_image(data)
                self._sizes.put(digest, size)
            if bucket is not None and not self._stored.get(digest):
                store_input(bucket, digest, data)
                self._stored.put(digest, digest)
        if bucket is None and not is_local(source, self.policy):
            self._kept.put(source, data)
        return StoredInput(digest, *size)


def key_of(source: str) -> bytes:
    """Return 16 bytes that identify a source: a data URL may have a million characters."""
    return hashlib.blake2b(source.encode("utf-8", "surrogatepass"), digest_size=16).digest()

"""Delete input images that no batch names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing

from latentfarm.errors import InputError
from latentfarm.inputs.store import DIGEST_PREFIX, GRACE_S
from latentfarm.parallel import ordered_parallel_map
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import BATCHES_PREFIX, INPUTS_PREFIX, manifest_prefix
from latentfarm.storage.manifest import read_header
from latentfarm.storage.object_age import list_ages
from latentfarm.storage.part_codec import unpack_lines

_THREADS = 8
#: a prompt may have such a text too: an input more is kept
_DIGEST = re.compile(rf"{DIGEST_PREFIX}([0-9a-f]{{64}})".encode())


def collect_inputs(
    bucket: Bucket, *, grace_s: float = GRACE_S, progress: Callable[[int], None] = lambda _parts: None
) -> int:
    """Delete the inputs that are older than ``grace_s`` and that no batch in the bucket names; return how many.

    Only the batches that may have inputs are read: by their header, or those without a header, whose submission or
    deletion is not at its end. An input that is used again while it is old is written again, so its age is that of
    its last use, to half of the grace period. The age is read again at the deletion.

    Args:
        bucket: the bucket.
        grace_s: a submission stores an input before the part that names it; seconds that this may take.
        progress: called after each part of a manifest with the number of parts so far.

    Raises:
        InputError: a header or a part is damaged, so that what it names is not known. Nothing is deleted.
        UnavailableError: the store does not answer.
    """
    unused = {_hex(key) for page in list_ages(bucket, INPUTS_PREFIX) for key, age_s in page if age_s > grace_s}
    if not unused:
        return 0
    parts = ordered_parallel_map(_parts(bucket), lambda key: _named_in(bucket, key), threads=_THREADS, group=1)
    with closing(parts) as read:
        for number, (_, named) in enumerate(read, start=1):
            unused -= named
            progress(number)
    deleted = 0
    for page in list_ages(bucket, INPUTS_PREFIX):
        keys = [key for key, age_s in page if age_s > grace_s and _hex(key) in unused]
        if keys:
            bucket.delete(keys)
        deleted += len(keys)
    return deleted


def _hex(key: str) -> bytes:
    return key.removeprefix(INPUTS_PREFIX).encode()


def _parts(bucket: Bucket) -> Iterator[str]:
    """Yield the keys of the parts of all batches that may have inputs."""
    for folder in bucket.folders(BATCHES_PREFIX):
        batch = folder.removeprefix(BATCHES_PREFIX).rstrip("/")
        header = read_header(bucket, batch)
        if header is None or header.inputs:
            yield from bucket.keys(manifest_prefix(batch))


def _named_in(bucket: Bucket, key: str) -> set[bytes]:
    """Return the digests that the jobs of a part name, in hex."""
    try:
        lines = unpack_lines(bucket.get(key), name=key)
    except MissingObjectError:
        # its batch was deleted at this moment
        return set()
    except InputError as error:
        raise InputError(f"{error}; no input is deleted") from None
    return {found for line in lines for found in _DIGEST.findall(line)}

"""Result lines of drafts, as they were when the drafts were finished or discarded.

From then on ``results/`` has only what became of the jobs. The lines are stored before the ledger changes, in objects
of ``draft-results/`` that are never written again with another content. So who ranks the drafts of a batch finds all
that it ever had, and a selection of the best that is repeated, or was interrupted, selects the same ones again.

A writer that finds many objects of a part merges them into one: it stores the merged object, then deletes the others. A
line may be in several objects, which changes nothing; of a job, the line of the highest epoch counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from latentfarm.errors import UnavailableError
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import draft_results_key, draft_results_prefix, parse_draft_results_key
from latentfarm.storage.part_codec import compress, dump_line, unpack

#: objects of a part above which they are merged
_MAX_OBJECTS = 16
#: listings of one read, between any two of which others have merged objects
_LISTINGS = 20

#: a result line of a draft, by the index of its job
Lines = dict[int, dict[str, Any]]


class DraftResults:
    """The lines of one batch."""

    def __init__(self, bucket: Bucket, batch: str) -> None:
        self._bucket = bucket
        self._batch = batch

    def parts(self) -> dict[int, list[str]]:
        """Return the keys of the objects of each part that has any."""
        found: dict[int, list[str]] = {}
        for key in self._bucket.keys(draft_results_prefix(self._batch)):
            part = parse_draft_results_key(key)
            if part is not None:
                found.setdefault(part, []).append(key)
        return found

    def read(self, part: int, keys: Sequence[str]) -> Lines:
        """Return the lines of a part, by rising index.

        Args:
            part: the number of the part.
            keys: of its objects, as ``parts`` has returned them.

        Raises:
            InputError: an object is damaged.
        """
        for _ in range(_LISTINGS):
            try:
                return _newest(line for key in keys for line in unpack(self._bucket.get(key), name=key))
            except MissingObjectError:
                # merged since the listing
                keys = self.parts().get(part, [])
        raise UnavailableError(f"{draft_results_prefix(self._batch)} changes faster than it is read", cause="store")

    def write(self, part: int, keys: Sequence[str], lines: Lines) -> None:
        """Store the lines of drafts of one part that are about to be finished or discarded.

        Args:
            part: the number of the part.
            keys: of its objects, as ``parts`` has returned them.
            lines: by index.
        """
        if not lines:
            return
        known = {*keys, self._put(part, lines)}
        if len(known) > _MAX_OBJECTS:
            merged = self._put(part, self.read(part, sorted(known)))
            self._bucket.delete(sorted(known - {merged}))

    def _put(self, part: int, lines: Lines) -> str:
        body = b"".join(dump_line(lines[index]) for index in sorted(lines))
        key = draft_results_key(self._batch, part, hashlib.sha256(body).hexdigest()[:16])
        self._bucket.put(key, compress(body), content_type="application/gzip")
        return key


def _newest(lines: Iterator[dict[str, Any]]) -> Lines:
    found: Lines = {}
    for line in lines:
        known = found.get(line["index"])
        if known is None or known["epoch"] < line["epoch"]:
            found[line["index"]] = line
    return {index: found[index] for index in sorted(found)}

"""Picks and ratings of a batch's images: a journal of small immutable objects below ``batches/<batch>/picks/``.

A change is one put of an object with a key of its own. So two servers and a command that write at the same time lose
nothing of each other, on a store without conditional writes as well; ``pick_state`` has what the objects mean together.

A writer that finds more than ``_MAX_OBJECTS`` of them after its put merges some into one: it stores the merged object,
then deletes those that it has read. A process that dies between the two leaves lines twice, which changes nothing. Two
that merge the same objects both store all of their lines. A reader that finds an object gone since its listing lists
again: the object that has its lines was stored before.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import accumulate
from threading import RLock
from typing import Any

from latentfarm.batch_state import BatchState
from latentfarm.errors import InputError, NotFoundError, UnavailableError
from latentfarm.job_state import JobState
from latentfarm.ledger import Ledger
from latentfarm.parallel import ordered_parallel_map
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import parse_picks_key, picks_key, picks_prefix
from latentfarm.storage.pick_state import (
    Decision,
    PickChange,
    PickCounts,
    PickLine,
    PickState,
    Unchanged,
    dump_lines,
    parse_lines,
)

log = logging.getLogger(__name__)

#: images of a batch about which something may be decided: a process holds the decisions in memory, 0.3 kB each
MAX_DECIDED = 1_000_000
#: objects above which some are merged: each is a request of a reader
_MAX_OBJECTS = 32
#: a larger object is not merged with others that have, together, less than this share of its images
_MERGED_SHARE = 0.25
#: listings of one read, between any two of which others have merged objects
_LISTINGS = 20
_THREADS = 8


class PickJournal:
    """The picks of one batch, as they were at the last ``refresh`` or ``write``. Thread-safe.

    Objects are immutable, so each is read once, however often the journal is refreshed. For ``fresh_s`` seconds after
    that, it is not refreshed again.
    """

    def __init__(self, bucket: Bucket, batch: str, *, fresh_s: float = 0) -> None:
        self.batch = batch
        self._fresh_s = fresh_s
        self._read_at = -math.inf
        self._bucket = bucket
        self._state = PickState()
        self._known: set[str] = set()
        # held while the bucket is read and written: the state is joined by one thread at a time
        self._lock = RLock()

    def __len__(self) -> int:
        """Return the number of jobs about whose images something was decided."""
        return len(self._state)

    def __bool__(self) -> bool:
        """Return true: a journal without decisions is one as well."""
        return True

    def refresh(self) -> None:
        """Read the objects that were stored since: one listing, and a get for each.

        Raises:
            InputError: an object is damaged.
        """
        with self._lock:
            if time.monotonic() - self._read_at >= self._fresh_s:
                self._read_new()

    def _read_new(self) -> None:
        began = time.monotonic()
        for _ in range(_LISTINGS):
            keys = {key for key in self._bucket.keys(picks_prefix(self.batch)) if parse_picks_key(key) is not None}
            if self._known and self._known.isdisjoint(keys):
                # the batch was deleted, and perhaps submitted again
                self._state, self._known = PickState(), set()
            try:
                for key, body in _read(self._bucket, sorted(keys - self._known)):
                    self._join(key, parse_lines(body, key))
            except MissingObjectError:
                # merged since the listing, which outdates what was listed before as well
                continue
            self._known, self._read_at = keys, began
            return
        raise UnavailableError(f"{picks_prefix(self.batch)} changes faster than it is read", cause="store")

    def write(self, ledger: Ledger, changes: Sequence[PickChange], *, by: str = "") -> None:
        """Store changes, which overrule all that this journal has seen, and merge objects if there are many.

        Args:
            ledger: it has the time, and whether the batch exists.
            changes: of images that the jobs have or had.
            by: the name of the API key that decides.

        Raises:
            InputError: too many images are decided about.
            NotFoundError: the batch is deleted.
        """
        with self._lock:
            self._read_new()
            lines = _lines_of(changes, at=max(ledger.now_us(), self._state.latest_us + 1), by=by)
            if not lines:
                return
            more = sum(each.index not in self._state for each in changes)
            if len(self._state) + more > MAX_DECIDED:
                raise InputError(
                    f"batch {self.batch} has {len(self._state):,} images with picks, and {more:,} more are too many; "
                    f"at most {MAX_DECIDED:,} are kept: pick fewer, such as only those to keep"
                )
            key = self._put(lines)
            self._join(key, lines)
            stored = [key, *self._merge()]
            [*summaries] = ledger.batch_summaries([self.batch])
            if not summaries or summaries[0].state is BatchState.DELETING:
                # the deletion may have listed the bucket before these objects were stored
                self._bucket.delete(stored)
                raise NotFoundError(f"batch {self.batch!r} is deleted")

    def _put(self, lines: Sequence[PickLine]) -> str:
        images = sum(len(line.images) for line in lines)
        key = picks_key(self.batch, lines[0].at, secrets.token_hex(8), images)
        self._bucket.put(key, dump_lines(lines), content_type="application/gzip")
        return key

    def _join(self, key: str, lines: Iterable[PickLine]) -> None:
        for line in lines:
            self._state.join(line)
        self._known.add(key)

    def _merge(self) -> list[str]:
        """Merge objects if there are many; return the key of the merged one, if there is one.

        An error is logged: what the caller has decided is stored already.
        """
        keys = _to_merge(self._known)
        if not keys:
            return []
        try:
            merged = PickState()
            for key, body in _read(self._bucket, keys):
                for line in parse_lines(body, key):
                    merged.join(line)
            key = self._put(list(merged.lines()))
            self._known.add(key)
            self._bucket.delete(keys)
            self._known.difference_update(keys)
        except MissingObjectError:
            # another process has merged them
            return []
        except (UnavailableError, InputError) as error:
            log.warning("picks of %s are not merged: %s", self.batch, error)
            return []
        return [key]

    def counts(self) -> PickCounts:
        """Return how many images are picked, rejected and rated."""
        with self._lock:
            return self._state.counts()

    def decisions(self) -> list[Decision]:
        """Return all decisions by rising index."""
        with self._lock:
            return self._state.decisions()

    def outdated(self, index: int, epoch: int | None, *, draft: bool) -> list[PickChange]:
        """Return the changes that withdraw what counts no longer for a job; see ``PickState.outdated``."""
        with self._lock:
            return self._state.outdated(index, epoch, draft=draft)

    def select(self, words: Collection[str], rating: int = 0, start: int = 0) -> list[int]:
        """Return the rising indices from ``start`` of images with a decision that fits; see ``PickState.select``."""
        with self._lock:
            return self._state.select(words, rating, start)

    def fields_of(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the pick and the rating of the image, or the draft, of a job's result, as far as they are set."""
        if result.get("epoch") is None:
            return {}
        draft = result["state"] == JobState.DRAFTED.word
        found = self._state.decision_about(result["index"], result["epoch"], draft=draft)
        return {} if found is None else found.fields()


def _read(bucket: Bucket, keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    if len(keys) < 2:
        yield from ((key, bucket.get(key)) for key in keys)
        return
    with closing(ordered_parallel_map(keys, bucket.get, threads=_THREADS, group=1)) as found:
        yield from found


def _lines_of(changes: Sequence[PickChange], *, at: int, by: str) -> list[PickLine]:
    """Return the lines of changes that are made together: one for each pair of values, and for drafts."""
    groups: dict[tuple[Any, Any, bool], list[tuple[int, int]]] = {}
    for each in changes:
        groups.setdefault((each.pick, each.rating, each.draft), []).append((each.index, each.epoch))
    unique = secrets.token_hex(8)
    found = []
    for (pick, rating, draft), images in groups.items():
        values = {"pick": pick, "rating": rating}
        values = {name: value for name, value in values.items() if not isinstance(value, Unchanged)}
        if values:
            values |= {"draft": True} if draft else {}
            found.append(PickLine(at=at, id=unique, by=by, images=images, **values))
    return found


def _to_merge(keys: Collection[str]) -> list[str]:
    """Return the objects to merge into one, none if there are few.

    They are the smallest ones, without those that are much larger than all smaller ones together: to write a hundred
    thousand images again at every thirtieth key press would cost more than it saves.
    """
    if len(keys) <= _MAX_OBJECTS:
        return []
    ordered = sorted(keys, key=lambda key: (parse_picks_key(key), key))
    images = [parse_picks_key(key) or 0 for key in ordered]
    before = [0, *accumulate(images)]
    count = max(at + 1 for at, own in enumerate(images) if at == 0 or before[at] >= _MERGED_SHARE * own)
    return ordered[:count] if count > 1 else []

"""The states of a batch's jobs for clients that watch them: one snapshot for all, and the blocks of it that changed."""

from __future__ import annotations

import gzip
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from weakref import WeakValueDictionary

from pydantic_core import to_json
from starlette.requests import Request

from latentfarm.ledger import Ledger
from latentfarm.server.api.models import MAX_STATES
from latentfarm.server.context import ServerContext, context_of, of_server
from latentfarm.server.live.cache import Cached

#: jobs in a block; of a million, one that changed costs about a hundred bytes
BLOCK_JOBS = 4_096
#: seconds for which a snapshot is new enough for every client
_FRESH_S = 0.5
#: snapshots that are kept for clients to come, a megabyte each, and events
_MAX_SNAPSHOTS, _MAX_EVENTS = 32, 32

_serials = count(1)


@dataclass(frozen=True, eq=False)
class StatesSnapshot:
    """The states, a byte each, of up to a million jobs from ``start`` on, in a batch of ``total`` jobs.

    ``version`` is that of the ledger when they were read, or an earlier one. ``serial`` is of this object only.
    """

    start: int
    total: int
    states: bytes
    version: tuple[bytes, ...] = ()
    serial: int = field(default_factory=lambda: next(_serials))


def changed_blocks(old: bytes, new: bytes) -> Iterator[tuple[int, int]]:
    """Yield where ``new`` differs from ``old``, as position and length: runs of blocks, of which the last may be short.

    Cut or extended to the length of ``new``, ``old`` becomes ``new`` if the runs are replaced.
    """
    begin: int | None = None
    for at in range(0, len(new), BLOCK_JOBS):
        if old[at : at + BLOCK_JOBS] != new[at : at + BLOCK_JOBS]:
            begin = at if begin is None else begin
        elif begin is not None:
            yield begin, at - begin
            begin = None
    if begin is not None:
        yield begin, len(new) - begin


def states_event(old: StatesSnapshot | None, new: StatesSnapshot) -> str:
    """Return the data of the event for a client that has ``old``, which is None for a new one; empty for no change."""
    blocks = [
        {
            "start": new.start + at,
            "length": length,
            "states": b64encode(gzip.compress(new.states[at : at + length], compresslevel=1, mtime=0)).decode(),
        }
        for at, length in changed_blocks(old.states if old else b"", new.states)
    ]
    if old is not None and not blocks and old.total == new.total:
        return ""
    return to_json({"start": new.start, "total": new.total, "blocks": blocks}).decode()


class WatchedStates:
    """The snapshots of one server. However many clients watch a batch, its states are read once for all of them."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._snapshots = Cached[StatesSnapshot](_FRESH_S, max_keys=_MAX_SNAPSHOTS)
        self._events = Cached[str](_FRESH_S, max_keys=_MAX_EVENTS)
        #: by batch and start: what clients have, and so what is read again only if it has changed
        self._latest: WeakValueDictionary[tuple[str, int], StatesSnapshot] = WeakValueDictionary()

    async def next_event(self, batch: str, start: int, old: StatesSnapshot | None) -> tuple[StatesSnapshot, str]:
        """Return the snapshot of now, and the event for a client that has ``old``; empty for no change.

        Raises:
            NotFoundError: the batch is unknown.
        """
        run = self._context.run
        new = await self._snapshots.get((batch, start), partial(run, self._read, batch, start))
        if new is old:
            return new, ""
        key = (old.serial if old else 0, new.serial)
        return new, await self._events.get(key, partial(run, states_event, old, new))

    def _read(self, batch: str, start: int) -> StatesSnapshot:
        latest = self._latest.get((batch, start))
        found = read_snapshot(self._context.farm.ledger, batch, start, latest)
        self._latest[batch, start] = found
        return found


def read_snapshot(ledger: Ledger, batch: str, start: int, latest: StatesSnapshot | None) -> StatesSnapshot:
    """Return the states of now, which are ``latest`` itself if none has changed.

    Raises:
        NotFoundError: the batch is unknown.
    """
    # before the states: what changes in between is read again
    total, version = ledger.states_version(batch)
    if latest is not None and latest.version == version:
        return latest
    stop = min(start + MAX_STATES, total)
    return StatesSnapshot(start, total, ledger.state_bytes(batch, start, max(start, stop)), version)


def watched_states(request: Request) -> WatchedStates:
    """Return the watched states of the server that answers a request."""
    return of_server(request, "watched_states", lambda: WatchedStates(context_of(request)))

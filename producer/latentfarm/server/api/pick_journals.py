"""The picks of batches that this server has read. A page of a gallery needs them with each page of jobs."""

from __future__ import annotations

from collections import OrderedDict

from starlette.requests import Request

from latentfarm.batch import Batch
from latentfarm.server.api.request import batch_name
from latentfarm.server.context import context_of, of_server
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.picks import MAX_DECIDED, PickJournal

#: seconds for which what others have decided may not be seen; decisions that this server stores are seen at once
_FRESH_S = 1.0
#: batches whose picks are kept, if they have fewer than ``MAX_DECIDED`` together
_BATCHES = 64


class PickJournals:
    """The journals of the batches that were last used. Used by the event loop only."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._journals: OrderedDict[str, PickJournal] = OrderedDict()

    def get(self, batch: str) -> PickJournal:
        """Return the journal of a batch, which may be unread."""
        journal = self._journals.get(batch) or PickJournal(self._bucket, batch, fresh_s=_FRESH_S)
        self._journals[batch] = journal
        self._journals.move_to_end(batch)
        while len(self._journals) > 1 and (len(self._journals) > _BATCHES or self._decided() > MAX_DECIDED):
            self._journals.popitem(last=False)
        return journal

    def _decided(self) -> int:
        return sum(map(len, self._journals.values()))


def batch_with_picks(request: Request) -> Batch:
    """Return the batch in the path, with the picks that this server has read."""
    connection, name = context_of(request).farm.connection, batch_name(request)
    journals = of_server(request, "pick_journals", lambda: PickJournals(connection.bucket))
    return Batch(connection, name, journal=journals.get(name))

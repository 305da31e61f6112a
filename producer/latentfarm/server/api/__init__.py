"""The farm's own protocol at ``/api``: batches, jobs, drafts, images, workers and events."""

from __future__ import annotations

from latentfarm.server.api import batches, drafts, events, images, jobs, picks, results, submission, workers
from latentfarm.server.api.document import document_operation
from latentfarm.server.http.operation import Operation
from latentfarm.server.security import session_operations

_OWN: tuple[Operation, ...] = (
    *submission.OPERATIONS,
    *batches.OPERATIONS,
    *jobs.OPERATIONS,
    *results.OPERATIONS,
    *picks.OPERATIONS,
    *drafts.OPERATIONS,
    *images.OPERATIONS,
    *workers.OPERATIONS,
    *events.OPERATIONS,
)
#: sessions are of the security room, and of the same protocol
OPERATIONS: tuple[Operation, ...] = (*_OWN, document_operation((*_OWN, *session_operations.OPERATIONS)))

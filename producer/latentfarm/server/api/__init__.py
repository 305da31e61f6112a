"""The farm's own protocol at ``/api``: batches, jobs, images, workers and events."""

from __future__ import annotations

from latentfarm.server.api import batches, events, images, jobs, submission, workers
from latentfarm.server.api.document import document_operation
from latentfarm.server.http.operation import Operation

_DESCRIBED: tuple[Operation, ...] = (
    *submission.OPERATIONS,
    *batches.OPERATIONS,
    *jobs.OPERATIONS,
    *images.OPERATIONS,
    *workers.OPERATIONS,
    *events.OPERATIONS,
)
OPERATIONS: tuple[Operation, ...] = (*_DESCRIBED, document_operation(_DESCRIBED))

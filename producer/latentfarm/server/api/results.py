"""Results of a batch as JSON lines: the request and the receipt or the error of each job."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from latentfarm.batch import Batch
from latentfarm.limits import PART_JOBS
from latentfarm.server.api.jobs import STATE_OF, results_with_paths
from latentfarm.server.api.models import ResultsQuery
from latentfarm.server.api.pick_journals import batch_with_picks
from latentfarm.server.api.request import read_query
from latentfarm.server.api.threads import run_with_bucket
from latentfarm.server.context import context_of
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.storage.part_codec import dump_line


async def stream_results(request: Request) -> Response:
    query = read_query(request, ResultsQuery)
    context, batch = context_of(request), batch_with_picks(request)
    lines = await context.run(_open, batch, query)
    # before the answer begins: an error is reported with its status
    first = await run_with_bucket(request, _next, lines)
    headers = {"Content-Disposition": f'attachment; filename="{batch.name}.jsonl"'}
    return StreamingResponse(_stream(request, lines, first), headers=headers, media_type="application/x-ndjson")


def _open(batch: Batch, query: ResultsQuery) -> Iterator[dict[str, Any]]:
    ledger = batch.connection.ledger
    total = ledger.batch(batch.name).total
    states = {STATE_OF[word] for word in query.state}
    indices = ledger.find_states(batch.name, states, 0, total) if states else None
    return results_with_paths(batch, indices, query.pick)


def _next(lines: Iterator[dict[str, Any]]) -> bytes:
    """Return the next lines, as many as a part has."""
    return b"".join(map(dump_line, islice(lines, PART_JOBS)))


async def _stream(request: Request, lines: Iterator[dict[str, Any]], first: bytes) -> AsyncIterator[bytes]:
    while first:
        yield first
        first = await run_with_bucket(request, _next, lines)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/api/batches/{name}/results",
        stream_results,
        Scope.READ,
        "Return the results of all jobs, a JSON object a line",
        query=ResultsQuery,
        media_type="application/x-ndjson",
    ),
)

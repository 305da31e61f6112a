"""Drafts of a batch: what it costs to finish some of them, and finishing or discarding them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from latentfarm.batch import Batch
from latentfarm.batch_drafts import DraftReport, DraftSelection
from latentfarm.server.api.answers import DraftsAnswer
from latentfarm.server.api.models import MAX_PICKS, DraftsBody, DraftsQuery, EmptyQuery
from latentfarm.server.api.pick_journals import batch_with_picks
from latentfarm.server.api.polled import polled_answers
from latentfarm.server.api.request import json_answer, read_query
from latentfarm.server.api.threads import run_with_bucket
from latentfarm.server.http.body import read_json
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError
from latentfarm.storage.pick_state import Pick

#: a body that is empty by mistake must not finish or discard everything
_WITHOUT = "write which drafts, as indices, pick, top or distinct; or all: true"
_BESIDE = "all is true beside a criterion; leave out one of them"


async def price_drafts(request: Request) -> Response:
    query = read_query(request, DraftsQuery)
    batch = batch_with_picks(request)
    return _answer(await run_with_bucket(request, batch.price_drafts, _selection(query)))


async def finish_drafts(request: Request) -> Response:
    return await _decide(request, Batch.finish)


async def discard_drafts(request: Request) -> Response:
    return await _decide(request, partial(Batch.discard, flush=False))


async def _decide(request: Request, decide: Callable[[Batch, DraftSelection], DraftReport]) -> Response:
    """Finish or discard the drafts of the body. A request that was cut off is sent again: it goes on."""
    read_query(request, EmptyQuery)
    body = await read_json(request, DraftsBody)
    selection = _selection(body)
    if body.all != (selection == DraftSelection()):
        raise RequestError(400, "invalid_request", _BESIDE if body.all else _WITHOUT, param="all")
    batch = batch_with_picks(request)
    try:
        return _answer(await run_with_bucket(request, decide, batch, selection))
    finally:
        polled_answers(request).forget()


def _selection(given: DraftsQuery | DraftsBody) -> DraftSelection:
    # a query without indices has none of them, a body may have an empty list
    indices = None if given.indices is None or given.indices == () else tuple(given.indices)
    pick = Pick(given.pick) if given.pick else None
    return DraftSelection(indices, pick, given.top, given.by, given.distinct)


def _answer(report: DraftReport) -> Response:
    return json_answer(DraftsAnswer(**dict(report) | {"indices": report.indices[:MAX_PICKS]}))


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/api/batches/{name}/drafts/price",
        price_drafts,
        Scope.READ,
        "Report what it costs to finish drafts, and what is saved without the others",
        query=DraftsQuery,
        answer=DraftsAnswer,
    ),
    Operation(
        "POST",
        "/api/batches/{name}/finish",
        finish_drafts,
        Scope.SUBMIT,
        "Render drafts of a batch to their end",
        audited=True,
        query=EmptyQuery,
        body=DraftsBody,
        answer=DraftsAnswer,
    ),
    Operation(
        "POST",
        "/api/batches/{name}/discard",
        discard_drafts,
        Scope.SUBMIT,
        "Discard drafts of a batch for good, with their checkpoints and previews",
        audited=True,
        query=EmptyQuery,
        body=DraftsBody,
        answer=DraftsAnswer,
    ),
)

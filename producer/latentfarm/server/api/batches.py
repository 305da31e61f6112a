"""Batches: list, status, failures, and decisions about one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from latentfarm.batch import Batch
from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import ACTIVE, BatchState
from latentfarm.batch_status import BatchStatus
from latentfarm.errors import LatentfarmError, NotFoundError
from latentfarm.farm import Farm
from latentfarm.server.api.answers import BatchAnswer, BatchesAnswer, RetryAnswer
from latentfarm.server.api.models import BatchesQuery, EmptyBody, EmptyQuery, PauseBody, PriorityBody, RetryBody
from latentfarm.server.api.polled import polled_answer, polled_answers
from latentfarm.server.api.request import batch_name, json_answer, read_optional_json, read_query
from latentfarm.server.api.threads import run_with_bucket
from latentfarm.server.context import context_of
from latentfarm.server.http.body import read_json
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError
from latentfarm.waiting import wait_reasons

log = logging.getLogger(__name__)

#: deletions that run: the loop itself keeps no reference
_deletions: set[asyncio.Task[None]] = set()
#: batches whose summaries are read at once, and how often for one page; what is found by then is the page
_GROUP, _SCANNED_GROUPS = 200, 50
#: interactive batches whose progress is reported; each has a few images, and a client that waits for them
_LISTED_INTERACTIVE = 200
_UNFINISHED = ACTIVE | {BatchState.DELETING, BatchState.RECOVERING}


async def list_batches(request: Request) -> Response:
    return await polled_answer(request, _page, read_query(request, BatchesQuery))


def _page(farm: Farm, query: BatchesQuery) -> BatchesAnswer:
    found: list[BatchStatus] = []
    interactive = query.kind is BatchKind.INTERACTIVE
    names = farm.ledger.newest_batches(interactive=interactive, before=parse_cursor(query.cursor))
    for _ in range(_SCANNED_GROUPS):
        group = list(islice(names, _GROUP))
        candidates = _candidates(farm, [name for _, name in group], query)
        for created, name in group:
            status = _status_or_none(farm, name) if name in candidates else None
            if status and (not query.state or status.state in query.state):
                found.append(status)
            if len(found) == query.limit:
                return BatchesAnswer(batches=_with_warnings(farm, found), next=f"{created}:{name}")
        if len(group) < _GROUP:
            return BatchesAnswer(batches=_with_warnings(farm, found), next=None)
    return BatchesAnswer(batches=_with_warnings(farm, found), next=f"{created}:{name}")


def _candidates(farm: Farm, names: Sequence[str], query: BatchesQuery) -> set[str]:
    """Return those of the batches that may match, in one round trip; a summary has the stored state only."""
    stored = set(query.state)
    if stored & {BatchState.PAUSED, BatchState.DRAFTED}:
        stored |= ACTIVE
    return {
        each.name
        for each in farm.ledger.batch_summaries(names)
        if (not stored or each.state in stored)
        and query.kind in {None, each.kind}
        and query.owner in {None, each.owner}
        and query.model in {"", each.model}
    }


def _status_or_none(farm: Farm, name: str) -> BatchStatus | None:
    try:
        return Batch(farm.connection, name).status()
    except NotFoundError:
        # deleted meanwhile
        return None


def parse_cursor(cursor: str) -> tuple[int, str] | None:
    """Return the batch after which a page begins.

    Raises:
        RequestError: 400, it is no cursor.
    """
    if not cursor:
        return None
    created, _, name = cursor.partition(":")
    if not (created.isascii() and created.isdecimal() and len(created) <= 16 and name):
        raise RequestError(400, "invalid_request", "cursor: write `next` of the page before", param="cursor")
    return int(created), name


async def show_batch(request: Request) -> Response:
    read_query(request, EmptyQuery)
    return await polled_answer(request, batch_answer, batch_name(request))


def batch_answer(farm: Farm, name: str) -> BatchAnswer:
    """Return the progress of a batch."""
    # `farm.batch` would search all names for similar ones
    [answer] = _with_warnings(farm, [Batch(farm.connection, name).status()])
    return answer


def _with_warnings(farm: Farm, statuses: Sequence[BatchStatus]) -> list[BatchAnswer]:
    reasons = wait_reasons(farm.ledger, statuses)
    return [BatchAnswer(**each.model_dump(), warnings=tuple(reasons.get(each.batch, ()))) for each in statuses]


def active_answers(farm: Farm, kind: BatchKind | None) -> list[BatchAnswer]:
    """Return the progress of the active batches of a kind; of None, of all but interactive ones."""
    if kind is BatchKind.INTERACTIVE:
        names = [name for _, name in islice(farm.ledger.newest_batches(interactive=True), _LISTED_INTERACTIVE)]
    else:
        summaries = farm.ledger.batch_summaries()
        names = [each.name for each in summaries if each.state in _UNFINISHED and kind in {None, each.kind}]
    found = (_status_or_none(farm, name) for name in names)
    return _with_warnings(farm, [each for each in found if each is not None and not each.is_final])


async def pause(request: Request) -> Response:
    body = await read_optional_json(request, PauseBody)
    return await _decide(request, lambda batch: batch.pause(body.reason, now=body.now))


async def resume(request: Request) -> Response:
    await read_optional_json(request, EmptyBody)
    return await _decide(request, Batch.resume)


async def cancel(request: Request) -> Response:
    await read_optional_json(request, EmptyBody)
    return await _decide(request, lambda batch: batch.cancel(flush=False))


async def retry(request: Request) -> Response:
    body = await read_optional_json(request, RetryBody)
    return await _decide(request, lambda batch: RetryAnswer(retried=batch.retry(code=body.code)))


async def set_priority(request: Request) -> Response:
    body = await read_json(request, PriorityBody)
    return await _decide(request, lambda batch: batch.set_priority(body.priority))


async def _decide(request: Request, decide: Callable[[Batch], BaseModel]) -> Response:
    """Carry out a decision about the batch in the path, and answer with what it returns."""
    read_query(request, EmptyQuery)
    context = context_of(request)
    batch = Batch(context.farm.connection, batch_name(request))
    try:
        return json_answer(await run_with_bucket(request, decide, batch))
    finally:
        polled_answers(request).forget()


async def delete(request: Request) -> Response:
    """Answer as soon as no job of the batch runs any more; its objects are removed after that."""
    read_query(request, EmptyQuery)
    context = context_of(request)
    batch = Batch(context.farm.connection, batch_name(request))
    await context.run(context.farm.ledger.mark_deleting, batch.name)
    polled_answers(request).forget()
    answer = json_answer(await context.run(batch.status), status=202)
    # no background task of the answer: that holds the connection, on which the client polls
    task = asyncio.create_task(_delete(request, batch))
    _deletions.add(task)
    task.add_done_callback(_deletions.discard)
    return answer


async def _delete(request: Request, batch: Batch) -> None:
    context = context_of(request)

    def check(_removed: int) -> None:
        if context.stopping.is_set():
            # another server, or this one after its start, continues at once
            context.farm.ledger.claim_deletion(batch.name, hold_s=0)
            raise _StoppingError

    try:
        await run_with_bucket(request, batch.delete, progress=check)
    except NotFoundError:
        # another request was quicker
        return
    except (LatentfarmError, _StoppingError) as error:
        text = "batch %s is not deleted yet; a server continues in some minutes: %s"
        log.warning(text, batch.name, str(error) or "this server ends")


class _StoppingError(Exception):
    """The server ends."""


def _operations() -> Iterator[Operation]:
    path = "/api/batches/{name}"
    yield Operation(
        "GET",
        "/api/batches",
        list_batches,
        Scope.READ,
        "List batches, newest first",
        query=BatchesQuery,
        answer=BatchesAnswer,
    )
    yield Operation(
        "GET", path, show_batch, Scope.READ, "Report a batch's progress", query=EmptyQuery, answer=BatchAnswer
    )
    for verb, endpoint, body, summary in (
        ("pause", pause, PauseBody, "Start no more jobs of a batch; running ones finish, or are parked"),
        ("resume", resume, EmptyBody, "Continue a batch after a pause or a canary"),
        ("cancel", cancel, EmptyBody, "End a batch for good; finished images stay"),
        ("priority", set_priority, PriorityBody, "Set a batch's priority"),
    ):
        yield Operation(
            "POST", f"{path}/{verb}", endpoint, Scope.SUBMIT, summary, audited=True, body=body, answer=BatchStatus
        )
    yield Operation(
        "POST",
        f"{path}/retry",
        retry,
        Scope.SUBMIT,
        "Run failed jobs of a batch again",
        audited=True,
        body=RetryBody,
        answer=RetryAnswer,
    )
    yield Operation(
        "DELETE",
        path,
        delete,
        Scope.SUBMIT,
        "Cancel a batch and delete it with all its objects",
        audited=True,
        query=EmptyQuery,
        answer=BatchStatus,
        status=202,
    )


OPERATIONS: tuple[Operation, ...] = tuple(_operations())

"""Picks and ratings of images: list and change them, and export them as a preference set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from dataclasses import asdict

import anyio
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from latentfarm.batch import Batch
from latentfarm.batch_picks import ImagePick
from latentfarm.errors import InputError
from latentfarm.fetch.tables import require_parquet
from latentfarm.job_state import JobState
from latentfarm.server.api.answers import PickCountsAnswer, PicksAnswer
from latentfarm.server.api.jobs import find_jobs
from latentfarm.server.api.models import EmptyQuery, JobsQuery, PickBody, PicksBody, PreferencesQuery
from latentfarm.server.api.pick_journals import batch_with_picks
from latentfarm.server.api.request import json_answer, read_query
from latentfarm.server.api.threads import run_with_bucket
from latentfarm.server.http.body import read_json
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.security.access import access_of
from latentfarm.storage.pick_state import UNCHANGED, Pick


async def list_picks(request: Request) -> Response:
    read_query(request, EmptyQuery)
    found = await run_with_bucket(request, _all_picks, batch_with_picks(request))
    return Response(found, media_type="application/json")


def _all_picks(batch: Batch) -> bytes:
    decisions = batch.picks()
    return to_json({"picks": decisions, **_counts(batch)})


def _counts(batch: Batch) -> dict[str, int]:
    found = asdict(batch.journal.counts())
    record = batch.connection.ledger.batch(batch.name)
    for word in Pick:
        drafts = find_jobs(batch, JobsQuery(pick=(word.value,)), {JobState.DRAFTED}, record.total)
        # most batches have none, and their states need not be read
        found[f"{word}_drafts"] = sum(1 for _ in drafts) if record.drafted else 0
    return found


async def change_picks(request: Request) -> Response:
    read_query(request, EmptyQuery)
    body = await read_json(request, PicksBody)
    batch = batch_with_picks(request)
    wanted, by = [_wanted(each) for each in body.picks], access_of(request).name
    return json_answer(await run_with_bucket(request, _decide, batch, wanted, by))


def _decide(batch: Batch, wanted: list[ImagePick], by: str) -> dict[str, int]:
    batch.decide(wanted, by=by)
    return _counts(batch)


def _wanted(body: PickBody) -> ImagePick:
    given = body.model_fields_set
    pick = (Pick(body.pick) if body.pick else None) if "pick" in given else UNCHANGED
    return ImagePick(body.index, pick, body.rating if "rating" in given else UNCHANGED, body.epoch)


async def export_preferences(request: Request) -> Response:
    query = read_query(request, PreferencesQuery)
    try:
        require_parquet("a preference set is Parquet")
    except InputError as error:
        raise RequestError(501, "not_installed", f"{error}, on the server") from None
    batch = batch_with_picks(request)
    pieces = await run_with_bucket(request, batch.preferences, images=query.images, form=query.form)
    # before the answer begins: an error is reported with its status
    first = await run_with_bucket(request, next, pieces, b"")
    headers = {"Content-Disposition": f'attachment; filename="{batch.name}-preferences.parquet"'}
    return StreamingResponse(
        _stream(request, pieces, first), headers=headers, media_type="application/vnd.apache.parquet"
    )


async def _stream(request: Request, pieces: Generator[bytes, None, None], first: bytes) -> AsyncIterator[bytes]:
    try:
        while first:
            yield first
            first = await run_with_bucket(request, next, pieces, b"")
    finally:
        # a client that hangs up leaves downloads, connections and a temporary file
        with anyio.CancelScope(shield=True):
            await run_with_bucket(request, pieces.close)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/api/batches/{name}/picks",
        list_picks,
        Scope.READ,
        "List what was decided about images of a batch",
        query=EmptyQuery,
        answer=PicksAnswer,
    ),
    Operation(
        "POST",
        "/api/batches/{name}/picks",
        change_picks,
        Scope.SUBMIT,
        "Pick, reject or rate images of a batch",
        audited=True,
        query=EmptyQuery,
        body=PicksBody,
        answer=PickCountsAnswer,
    ),
    Operation(
        "GET",
        "/api/batches/{name}/preferences",
        export_preferences,
        Scope.READ,
        "Return pairs of images, of which the first is preferred, as Parquet",
        query=PreferencesQuery,
        media_type="application/vnd.apache.parquet",
    ),
)

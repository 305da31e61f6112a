"""Jobs of a batch: pages of them, one, their states as bytes, and failures by code."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby, islice
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from latentfarm.a1111_parameters import parameters_of_result
from latentfarm.batch import Batch
from latentfarm.batch_picks import has_pick, select_indices
from latentfarm.errors import NotFoundError
from latentfarm.farm import Farm
from latentfarm.image_formats import format_of
from latentfarm.job_state import JobState
from latentfarm.limits import PART_JOBS
from latentfarm.server.api.answers import FailureAnswer, FailuresAnswer, JobsAnswer, OneJobAnswer
from latentfarm.server.api.models import MAX_STATES, EmptyQuery, JobsQuery, StatesQuery
from latentfarm.server.api.pick_journals import batch_with_picks
from latentfarm.server.api.polled import polled_answer
from latentfarm.server.api.request import batch_name, job_index, json_answer, read_query
from latentfarm.server.api.row_search import find_rows
from latentfarm.server.api.threads import run_with_bucket
from latentfarm.server.context import context_of
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError
from latentfarm.storage.keys import part_of
from latentfarm.storage.pick_state import UNDECIDED

#: parts that one answer reads: each is two objects of the bucket
_MAX_PARTS = 16
#: jobs whose states are read at once
_WINDOW_JOBS = 65_536
#: failed jobs that are listed for each code
_LISTED_JOBS = 20

#: of jobs whose receipt has the key of an image, or of the preview of a draft
_WITH_IMAGE = {JobState.DONE.word, JobState.DRAFTED.word}
#: states by their words
STATE_OF = {state.word: state for state in JobState}


async def list_jobs(request: Request) -> Response:
    query = read_query(request, JobsQuery)
    return json_answer(await run_with_bucket(request, _page, batch_with_picks(request), query))


def _page(batch: Batch, query: JobsQuery) -> dict[str, Any]:
    name, ledger = batch.name, batch.connection.ledger
    total = ledger.batch(name).total
    states = {STATE_OF[word] for word in query.state} or set(JobState)
    if query.code:
        # only failed jobs have one
        states &= {JobState.FAILED}
    jobs: list[dict[str, Any]] = []
    following: int | None = None
    parts: set[int] = set()
    wanted: list[int] = []
    by_row = bool(query.prompt) or query.seed is not None
    filtered = by_row or bool(query.code)
    for index in find_jobs(batch, query, states, total):
        parts.add(part_of(index))
        # with a filter, more jobs are read than are wanted
        if len(parts) > _MAX_PARTS or (not filtered and len(wanted) == query.limit):
            following = index
            break
        wanted.append(index)
    if by_row:
        wanted = find_rows(batch.connection.bucket, name, wanted, query)
        if not query.code and len(wanted) > query.limit:
            # the results of the others are not read
            following = wanted[query.limit]
            del wanted[query.limit :]
    for line in batch.results_at_once(wanted):
        if query.code and line.get("error", {}).get("code") != query.code:
            continue
        if not has_pick(line, query.pick) or line.get("rating", 0) < (query.rating or 0):
            # decided about an earlier image of the job
            continue
        if len(jobs) == query.limit:
            following = line["index"]
            break
        jobs.append(_with_paths(name, line))
    return {"jobs": jobs, "next": following}


def find_jobs(batch: Batch, query: JobsQuery, states: Collection[JobState], total: int) -> Iterator[int]:
    """Yield the rising indices of jobs in some states whose picks and ratings fit a query, by their indices alone."""
    ledger, journal = batch.connection.ledger, batch.journal
    if query.pick or query.rating:
        journal.refresh()
    if query.rating or (query.pick and UNDECIDED not in query.pick):
        # few of many jobs: only their states are read
        decided = (index for index in journal.select(query.pick, query.rating or 0, query.start) if index < total)
        for window, group in groupby(decided, key=lambda index: index // _WINDOW_JOBS * _WINDOW_JOBS):
            found = ledger.state_bytes(batch.name, window, window + _WINDOW_JOBS)
            yield from (index for index in group if found[index - window] in states)
    else:
        in_states = ledger.find_states(batch.name, states, query.start, total)
        yield from select_indices(journal, query.pick, in_states, total)


def _with_paths(batch: str, line: dict[str, Any]) -> dict[str, Any]:
    """Return a job with the paths of its image, its thumbnail and its intermediates."""
    image = thumbnail = intermediates = None
    if line["state"] in _WITH_IMAGE and "key" in line and (found := format_of(line["key"])):
        path = f"/api/batches/{batch}/{{}}/{line['index']}?epoch={line['epoch']}"
        draft = "" if line["state"] == JobState.DONE.word else "&draft=1"
        image, thumbnail = (f"{path.format(kind)}&format={found.name}{draft}" for kind in ("images", "thumbnails"))
        intermediates = path.format("intermediates") if "intermediates" in line else None
    return {**line, "image": image, "thumbnail": thumbnail, "intermediates": intermediates}


async def show_job(request: Request) -> Response:
    read_query(request, EmptyQuery)
    context, batch = context_of(request), batch_with_picks(request)
    return json_answer(await run_with_bucket(request, _job, context.farm, batch, job_index(request)))


def _job(farm: Farm, batch: Batch, index: int) -> dict[str, Any]:
    check_index(farm, batch.name, index)
    job = _with_paths(batch.name, next(batch.results([index])))
    return {**job, "parameters": parameters_of_result(job) if job["image"] else None}


def results_with_paths(
    batch: Batch, indices: Iterable[int] | None, picks: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the results of jobs given by rising indices, or of all, with the paths of their images."""
    return (_with_paths(batch.name, line) for line in batch.results(indices, picks=picks))


def check_index(farm: Farm, name: str, index: int) -> None:
    """Check that a batch has a job.

    Raises:
        NotFoundError: there is no such batch or job.
    """
    total = farm.ledger.batch(name).total
    if index >= total:
        raise NotFoundError(f"job {name}/{index} does not exist; the batch has the jobs 0 to {total - 1}")


async def show_states(request: Request) -> Response:
    query = read_query(request, StatesQuery)
    context = context_of(request)
    zipped = "gzip" in request.headers.get("accept-encoding", "")
    found, total = await context.run(_states, context.farm, batch_name(request), query)
    etag = f'"{hashlib.blake2b(found, digest_size=16).hexdigest()}"'
    headers = {"ETag": etag, "X-Total": str(total), "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    if zipped:
        found = await context.run(gzip.compress, found, compresslevel=1, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return Response(found, headers=headers, media_type="application/octet-stream")


def _states(farm: Farm, name: str, query: StatesQuery) -> tuple[bytes, int]:
    total = farm.ledger.batch(name).total
    stop = min(query.start + MAX_STATES if query.stop is None else query.stop, total)
    if stop - query.start > MAX_STATES:
        text = f"stop: the range has more than {MAX_STATES:,} jobs; read it in pieces"
        raise RequestError(400, "invalid_request", text, param="stop")
    return farm.ledger.state_bytes(name, query.start, max(stop, query.start)), total


async def list_failures(request: Request) -> Response:
    read_query(request, EmptyQuery)
    return await polled_answer(request, _failures, batch_name(request))


def _failures(farm: Farm, name: str) -> FailuresAnswer:
    record = farm.ledger.batch(name)
    found = {
        code: FailureAnswer(code=code, count=count, indices=[], message="") for code, count in record.errors.items()
    }
    failed = farm.ledger.find_states(name, {JobState.FAILED}, 0, record.total)
    for line in Batch(farm.connection, name).results_at_once(_in_few_parts(failed)):
        error = line.get("error") or {}
        group = found.get(error.get("code", ""))
        if group is None:
            # it failed after the counters were read
            continue
        group.message = group.message or error.get("message", "")
        if len(group.indices) < _LISTED_JOBS:
            group.indices.append(line["index"])
    return FailuresAnswer(failures=sorted(found.values(), key=lambda each: (-each.count, each.code)))


def _in_few_parts(indices: Iterator[int]) -> Iterator[int]:
    parts: set[int] = set()
    for index in islice(indices, _MAX_PARTS * PART_JOBS):
        parts.add(part_of(index))
        if len(parts) > _MAX_PARTS:
            return
        yield index


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/api/batches/{name}/jobs",
        list_jobs,
        Scope.READ,
        "List jobs of a batch, with prompt, receipt and error",
        query=JobsQuery,
        answer=JobsAnswer,
    ),
    Operation(
        "GET",
        "/api/batches/{name}/jobs/{index}",
        show_job,
        Scope.READ,
        "Show one job with its receipt",
        query=EmptyQuery,
        answer=OneJobAnswer,
    ),
    Operation(
        "GET",
        "/api/batches/{name}/states",
        show_states,
        Scope.READ,
        "Report the states of jobs, a byte each: 0 pending, 1 leased, 2 done, 3 failed, 4 cancelled, 5 drafted",
        query=StatesQuery,
        media_type="application/octet-stream",
        also=(304,),
    ),
    Operation(
        "GET",
        "/api/batches/{name}/failures",
        list_failures,
        Scope.READ,
        "Report failures by error code",
        query=EmptyQuery,
        answer=FailuresAnswer,
    ),
)

"""``/v1/batches``: a file of requests as one batch of the farm."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from latentfarm.batch import Batch
from latentfarm.farm import Farm
from latentfarm.names import check_model_alias
from latentfarm.server.context import ServerContext, context_of
from latentfarm.server.http.body import read_json
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.interactive.models import is_openai_name, resolve_model
from latentfarm.server.openai import stored_batches, stored_files
from latentfarm.server.openai.batch_state import describe, find_batch, find_record
from latentfarm.server.openai.batch_submission import BatchSubmitter
from latentfarm.server.openai.ids import created_at, is_batch_id, new_stem
from latentfarm.server.openai.models import BatchAnswer, BatchBody, BatchList, BatchQuery
from latentfarm.server.openai.stored_batches import StoredBatch
from latentfarm.server.openai.stored_files import StoredFile
from latentfarm.server.security.access import access_of, audit_batch
from latentfarm.submission.prompts.lines import MAX_LINE_BYTES
from latentfarm.submission.prompts.openai_batch import URLS

_WINDOW = "24h"


async def create_batch(request: Request) -> Response:
    """Record a batch and queue its submission."""
    context, body = context_of(request), await read_json(request, BatchBody)
    _check(body)
    file, named = await context.run(_input_file, context, body.input_file_id)
    stem = await context.run(new_stem, context.farm.ledger)
    stored = StoredBatch(
        id=f"batch_{stem}",
        endpoint=body.endpoint,
        input_file_id=file.id,
        completion_window=body.completion_window,
        created_at=created_at(stem),
        models=await _models(context, named),
        filename=file.filename,
        metadata=body.metadata,
        output_expires_s=body.output_expires_after.seconds if body.output_expires_after else None,
        owner=access_of(request).name,
    )
    answer = await context.run(_store, context.farm, stored)
    audit_batch(request, answer.id)
    submitter_of(request).wake()
    return JSONResponse(answer.model_dump())


def submitter_of(request: Request) -> BatchSubmitter:
    """Return the submitter of the server that answers a request."""
    submitter: BatchSubmitter = request.app.state.submitter
    return submitter


def _check(body: BatchBody) -> None:
    if body.endpoint not in URLS:
        listed = " or ".join(URLS)
        raise _refused(f"endpoint {body.endpoint[:60]!r} is not supported by batches; write {listed}", "endpoint")
    if body.completion_window != _WINDOW:
        raise _refused(f"write {_WINDOW!r}; a batch here never expires", "completion_window")


def _input_file(context: ServerContext, file_id: str) -> tuple[StoredFile, str | None]:
    """Return the file of a new batch and the model of its first line."""
    farm, limit = context.farm, context.settings.max_batch_lines
    file = stored_files.read_record(farm.bucket, file_id, farm.ledger.now_s())
    if file is None:
        raise stored_files.missing_file(file_id, param="input_file_id")
    if file.purpose != "batch":
        raise _refused(f"the file's purpose is {file.purpose!r}; upload it with the purpose 'batch'", "input_file_id")
    if file.lines > limit:
        raise _refused(f"the file has {file.lines} lines, and a batch at most {limit}; split it", "input_file_id")
    return file, _first_model(farm, file.id)


def _store(farm: Farm, stored: StoredBatch) -> BatchAnswer:
    # from here on the batch exists; if this server dies, another one submits it when it is read
    stored_batches.write_batch(farm.bucket, stored)
    farm.ledger.queue_submission(stored.id)
    answer = describe(farm, stored)
    assert answer is not None  # noqa: S101 (no other server knows its id yet)
    return answer


def _first_model(farm: Farm, file: str) -> str | None:
    """Return the model of a file's first line, None if it names none. An invalid line is reported later."""
    line, _, _ = stored_files.open_content(farm.bucket, file).read(MAX_LINE_BYTES).lstrip().partition(b"\n")
    try:
        found: Any = json.loads(line)
        model = found["body"]["model"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return model if isinstance(model, str) else None


async def _models(context: ServerContext, name: str | None) -> tuple[str, ...]:
    """Return the alias of a model, and the client's own name for it."""
    try:
        alias = await resolve_model(context, name)
    except RequestError as error:
        # a batch may wait for its workers; an autoscaler starts them only then
        if error.code != "no_worker" or name is None or is_openai_name(name):
            raise
        alias = check_model_alias(name)
    return (alias,) if name in {None, alias} else (alias, str(name))


async def list_batches(request: Request) -> Response:
    """Return a page of batches, newest first."""
    context, query = context_of(request), BatchQuery.model_validate(dict(request.query_params))
    found = await context.run(_page, context.farm, query)
    data = found[: query.limit]
    page = BatchList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > len(data),
    )
    return JSONResponse(page.model_dump())


def _page(farm: Farm, query: BatchQuery) -> list[BatchAnswer]:
    """Return the batches of a page, and one more if there is one."""
    if query.after and not is_batch_id(query.after):
        raise _refused(f"{query.after[:100]!r} is no id of a batch", "after")
    found: list[BatchAnswer] = []
    for batch in stored_batches.batch_ids(farm.bucket, after=query.after):
        if known := find_batch(farm, batch):
            found.append(known[1])
        if len(found) > query.limit:
            break
    return found


async def get_batch(request: Request) -> Response:
    """Return a batch."""
    context = context_of(request)
    answer = await context.run(_find, context.farm, request.path_params["id"])
    return JSONResponse(answer.model_dump())


def _find(farm: Farm, batch: str) -> BatchAnswer:
    found = find_batch(farm, batch)
    if found is None:
        raise stored_batches.missing_batch(batch)
    return found[1]


async def cancel_batch(request: Request) -> Response:
    """Cancel a batch. Finished images stay, and are in its output file."""
    context = context_of(request)
    answer = await context.run(_cancel, context.farm, request.path_params["id"])
    submitter_of(request).wake()
    return JSONResponse(answer.model_dump())


def _cancel(farm: Farm, batch: str) -> BatchAnswer:
    found = _find(farm, batch)
    if found.status in {"completed", "failed", "expired"}:
        raise RequestError(409, "conflict", f"Cannot cancel a batch with status {found.status!r}.", param="batch_id")
    if found.status == "cancelled":
        return found
    # written before the ledger is read: a submission that begins meanwhile finds it
    stored_batches.write_cancellation(farm.bucket, batch, farm.ledger.now_s())
    if find_record(farm, batch) is not None:
        Batch(farm.connection, batch).cancel(flush=False)
    return _find(farm, batch)


def _refused(message: str, param: str) -> RequestError:
    return RequestError(400, "invalid_request", message, param=param)


OPERATIONS = (
    Operation(
        "POST",
        "/v1/batches",
        create_batch,
        Scope.SUBMIT,
        "Render a file of requests",
        audited=True,
        body=BatchBody,
        answer=BatchAnswer,
    ),
    Operation("GET", "/v1/batches", list_batches, Scope.READ, "List batches", query=BatchQuery, answer=BatchList),
    Operation("GET", "/v1/batches/{id}", get_batch, Scope.READ, "Describe a batch", answer=BatchAnswer),
    Operation(
        "POST",
        "/v1/batches/{id}/cancel",
        cancel_batch,
        Scope.SUBMIT,
        "Cancel a batch",
        audited=True,
        answer=BatchAnswer,
    ),
)

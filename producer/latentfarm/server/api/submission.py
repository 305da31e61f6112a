"""Submissions of a prompt file, an object in the bucket, or rows in JSON; and what they would enqueue."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from latentfarm.errors import ConflictError, InputError, InvalidRowsError
from latentfarm.names import DEFAULT_MODEL, check_batch_name, check_model_alias
from latentfarm.server.api.answers import ErrorAnswer, ErrorBody, PlanAnswer, SubmitAnswer
from latentfarm.server.api.models import (
    DEFAULT_FIELDS,
    EmptyQuery,
    PlanQuery,
    SubmitBody,
    SubmitForm,
    SubmitOptionsBody,
)
from latentfarm.server.api.polled import polled_answers
from latentfarm.server.api.request import json_answer, read_query
from latentfarm.server.api.threads import run_submission, run_with_bucket
from latentfarm.server.api.upload import read_upload
from latentfarm.server.context import ServerContext, context_of
from latentfarm.server.http.body import parse_json, read_json
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.security.access import access_of, audit_batch
from latentfarm.storage.bucket import Bucket
from latentfarm.submission.estimate import make_estimate
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.prompts import ReadOptions, SourceLike
from latentfarm.submission.prompts.columns import suggest_field
from latentfarm.submission.request import SubmitOptions, make_request

#: bytes of a key: S3's limit
_MAX_KEY_BYTES = 1_024
#: a key that every store accepts: no empty segment, none of dots, no control character
_KEY = re.compile(r"(?!\.{1,2}(/|$))[^/\x00-\x1f\x7f]+(/(?!\.{1,2}(/|$))[^/\x00-\x1f\x7f]+)*")
#: options of the command line that messages name, and what they are here; the longer ones first
_OPTIONS = {
    "--keep-columns": "keep_columns",
    "--prompt-column": "prompt_column",
    "--max-invalid": "max_invalid",
    "--column": "columns",
    "--format": "format",
    "--batch name": "name",
    "--sweep": "sweep",
}


@dataclass(frozen=True)
class _Submission:
    """A source with its options, as a request has them."""

    source: SourceLike
    options: SubmitOptionsBody
    #: the parameter that errors of rows name
    param: str

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``make_request``."""
        options = self.options
        for name in options.defaults.keys() - DEFAULT_FIELDS:
            # others are arguments of the functions that these are passed to
            text = f"defaults: {name[:80]!r} is not a field of rows; {suggest_field(name, DEFAULT_FIELDS)}"
            raise RequestError(400, "invalid_request", text, param="defaults")
        if options.name is not None:
            with _about("name"):
                check_batch_name(options.name)
        with _about("model"):
            check_model_alias(options.model or DEFAULT_MODEL)
        with _about("sweeps"):
            expansion = Expansion.parse(
                options.sweeps, dynamic=options.dynamic_prompts, seed=options.dynamic_prompts_seed
            )
        keep = options.keep_columns if isinstance(options.keep_columns, bool) else tuple(options.keep_columns)
        return {
            **options.defaults,
            "model": options.model or DEFAULT_MODEL,
            "reading": ReadOptions(
                prompt_column=options.prompt_column,
                keep_columns=keep,
                format=options.format,
                columns=tuple(options.columns.items()),
            ),
            "expansion": expansion,
        }


async def submit(request: Request) -> Response:
    read_query(request, EmptyQuery)
    owner = access_of(request).name

    def work(context: ServerContext, submission: _Submission) -> SubmitAnswer:
        return _submit(context, submission, owner)

    return await _answered(request, work, status=201)


async def plan(request: Request) -> Response:
    query = read_query(request, PlanQuery)
    return await _answered(request, partial(_plan, keep=query.keep), status=200)


async def _answered(
    request: Request, work: Callable[[ServerContext, _Submission], SubmitAnswer | PlanAnswer], *, status: int
) -> Response:
    context = context_of(request)
    async with _read(request) as submission:
        try:
            found = await run_submission(request, work, context, submission)
            if isinstance(found, SubmitAnswer):
                audit_batch(request, found.batch)
                polled_answers(request).forget()
            return json_answer(found, status=status)
        except ConflictError as error:
            raise RequestError(409, "conflict", _in_words_of_api(str(error)), param="name") from None
        except InvalidRowsError as error:
            body = ErrorBody(
                code="invalid_rows",
                message=_in_words_of_api(str(error)),
                param=submission.param,
                problems=[_in_words_of_api(each) for each in error.problems],
                total=error.total,
                reasons=error.reasons,
            )
            return json_answer(ErrorAnswer(error=body), status=422)
        except InputError as error:
            param = f"defaults.{error.field}" if error.field else None
            raise RequestError(400, "invalid_request", _in_words_of_api(str(error)), param=param) from None


@contextmanager
def _about(param: str) -> Iterator[None]:
    """Name the parameter that an error is about."""
    try:
        yield
    except InputError as error:
        raise RequestError(400, "invalid_request", _in_words_of_api(str(error)), param=param) from None


def _in_words_of_api(message: str) -> str:
    """Return a message with the names of this API's options instead of the command line's."""
    for option, name in _OPTIONS.items():
        message = message.replace(option, name)
    return message


def _submit(context: ServerContext, submission: _Submission, owner: str) -> SubmitAnswer:
    farm, options = context.farm, submission.options
    batch = farm.submit(
        submission.source,
        batch=options.name,
        options=SubmitOptions(
            priority=options.priority,
            preempt=options.preempt,
            canary=options.canary,
            failure_budget=options.failure_budget,
            webhook=options.webhook,
            validate_first=options.validate_first,
            max_invalid=options.max_invalid,
            owner=owner,
        ),
        inputs=context.inputs,
        **submission.arguments(),
    )
    record = farm.ledger.batch(batch.name)
    return SubmitAnswer(
        batch=batch.name, model=record.model, total=record.total, rejected=batch.rejected, notes=batch.notes
    )


def _plan(context: ServerContext, submission: _Submission, *, keep: float) -> PlanAnswer:
    farm, inputs = context.farm, context.inputs
    request = make_request(submission.source, client=farm.bucket.client, inputs=inputs, **submission.arguments())
    request = request.with_facts(farm.facts_for(request, submission.options.name))
    workers = farm.workers(request.model)
    throughput = farm.ledger.throughput(request.model)
    found = make_estimate(request, throughput=throughput, count_tokens=None, keep=keep)
    hours = found.gpu_hours / len(workers) if workers and found.gpu_hours is not None else None
    return PlanAnswer(**found.model_dump(), workers=len(workers), hours=hours)


@asynccontextmanager
async def _read(request: Request) -> AsyncIterator[_Submission]:
    """Read the body: JSON, or a form with a file, which is on disk within the block."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        context, body = context_of(request), await read_json(request, SubmitBody)
        yield await run_with_bucket(request, _of_body, body, context.farm.bucket)
        return
    async with read_upload(request) as upload:
        options = SubmitOptionsBody.model_validate(parse_json(bytes(upload.options) or b"{}"))
        yield _Submission(upload.path or "", options, "file")


def _of_body(body: SubmitBody, bucket: Bucket) -> _Submission:
    if (body.rows is None) == (body.source is None):
        raise RequestError(400, "invalid_request", "write either rows or source", param="rows")
    if body.rows is not None:
        return _Submission(body.rows, body, "rows")
    source, root = body.source or "", f"s3://{bucket.name}/"
    if source.startswith("s3://") and not source.startswith(root):
        text = f"source: the object is in another bucket; copy it to {root}"
        raise RequestError(400, "invalid_request", text, param="source")
    key = source.removeprefix(root)
    if not is_key(key):
        text = f"source: {source[:100]!r} is no key; write one such as prompts/cats.jsonl"
        raise RequestError(400, "invalid_request", text, param="source")
    # before it is opened: the error of a reader names the store's host
    if not bucket.exists(key):
        text = f"source: {root}{key} is not in the bucket; check its name"
        raise RequestError(400, "invalid_request", text, param="source")
    return _Submission(f"{root}{key}", body, "source")


def is_key(text: str) -> bool:
    """Return whether every store accepts a text as a key."""
    return _KEY.fullmatch(text) is not None and len(text.encode()) <= _MAX_KEY_BYTES


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST",
        "/api/batches",
        submit,
        Scope.SUBMIT,
        "Submit rows, an object of the bucket, or a prompt file as a batch",
        audited=True,
        query=EmptyQuery,
        body=SubmitBody,
        form=SubmitForm,
        answer=SubmitAnswer,
        status=201,
    ),
    Operation(
        "POST",
        "/api/plan",
        plan,
        Scope.SUBMIT,
        "Report what a submission would enqueue; nothing is stored",
        query=PlanQuery,
        body=SubmitBody,
        form=SubmitForm,
        answer=PlanAnswer,
    ),
)

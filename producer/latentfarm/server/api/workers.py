"""Workers and models."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from latentfarm.farm import Farm
from latentfarm.ledger import WorkerRecord
from latentfarm.server.api.answers import DrainAnswer, ModelAnswer, ModelsAnswer, WorkerAnswer, WorkersAnswer
from latentfarm.server.api.models import EmptyBody, EmptyQuery, ModelQuery
from latentfarm.server.api.polled import polled_answer, polled_answers
from latentfarm.server.api.request import json_answer, read_optional_json, read_query
from latentfarm.server.context import context_of
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError


async def list_workers(request: Request) -> Response:
    query = read_query(request, ModelQuery)
    return await polled_answer(request, _workers, query.model or None)


def _workers(farm: Farm, model: str | None) -> WorkersAnswer:
    return WorkersAnswer(workers=[_answer(each) for each in farm.ledger.worker_records(model)])


def _answer(worker: WorkerRecord) -> WorkerAnswer:
    fields = asdict(worker)
    times = {name: datetime.fromtimestamp(fields.pop(f"{name}_ms") / 1000, UTC) for name in ("since", "seen")}
    return WorkerAnswer(worker=fields.pop("name"), **fields, **times)


async def drain_worker(request: Request) -> Response:
    await read_optional_json(request, EmptyBody)
    read_query(request, EmptyQuery)
    context, worker = context_of(request), request.path_params["worker"]
    if not await context.run(context.farm.ledger.request_drain, worker):
        text = f"worker {worker[:100]!r} is unknown; GET /api/workers lists those that are alive"
        raise RequestError(404, "not_found", text)
    polled_answers(request).forget()
    return json_answer(DrainAnswer(worker=worker), status=202)


async def list_models(request: Request) -> Response:
    read_query(request, EmptyQuery)
    return await polled_answer(request, _models)


def _models(farm: Farm) -> ModelsAnswer:
    found = []
    for model in farm.ledger.model_records():
        rate = sum(worker.images_per_s or 0.0 for worker in model.workers)
        found.append(
            ModelAnswer(
                model=model.name,
                workers=len(model.workers),
                pending=model.pending,
                images_per_s=rate,
                facts=model.facts,
            )
        )
    return ModelsAnswer(models=found)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", "/api/workers", list_workers, Scope.READ, "List live workers", query=ModelQuery, answer=WorkersAnswer
    ),
    Operation(
        "POST",
        "/api/workers/{worker}/drain",
        drain_worker,
        Scope.ADMIN,
        "Let a worker take no more jobs, and end",
        audited=True,
        query=EmptyQuery,
        body=EmptyBody,
        answer=DrainAnswer,
        status=202,
    ),
    Operation("GET", "/api/models", list_models, Scope.READ, "List models", query=EmptyQuery, answer=ModelsAnswer),
)

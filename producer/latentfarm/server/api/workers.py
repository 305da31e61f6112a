"""Workers and models."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from latentfarm.farm import Farm
from latentfarm.ledger import WorkerRecord
from latentfarm.server.api.models import ModelAnswer, ModelQuery, ModelsAnswer, NoQuery, WorkerAnswer, WorkersAnswer
from latentfarm.server.api.request import json_answer, read_query
from latentfarm.server.context import context_of
from latentfarm.server.http.operation import Operation, Scope


async def list_workers(request: Request) -> Response:
    query = read_query(request, ModelQuery)
    context = context_of(request)
    return json_answer(await context.run(_workers, context.farm, query.model or None))


def _workers(farm: Farm, model: str | None) -> WorkersAnswer:
    return WorkersAnswer(workers=[_answer(each) for each in farm.ledger.worker_records(model)])


def _answer(worker: WorkerRecord) -> WorkerAnswer:
    fields = asdict(worker)
    times = {name: datetime.fromtimestamp(fields.pop(f"{name}_ms") / 1000, UTC) for name in ("since", "seen")}
    return WorkerAnswer(worker=fields.pop("name"), **fields, **times)


async def list_models(request: Request) -> Response:
    read_query(request, NoQuery)
    context = context_of(request)
    return json_answer(await context.run(_models, context.farm))


def _models(farm: Farm) -> ModelsAnswer:
    pending, workers = farm.ledger.pending_jobs(), farm.ledger.worker_records()
    found = []
    for model in sorted({*pending, *(worker.model for worker in workers)}):
        serving = [worker for worker in workers if worker.model == model]
        rate = sum(worker.images_per_s or 0.0 for worker in serving)
        found.append(ModelAnswer(model=model, workers=len(serving), pending=pending.get(model, 0), images_per_s=rate))
    return ModelsAnswer(models=found)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", "/api/workers", list_workers, Scope.READ, "List live workers", query=ModelQuery, answer=WorkersAnswer
    ),
    Operation("GET", "/api/models", list_models, Scope.READ, "List models", query=NoQuery, answer=ModelsAnswer),
)

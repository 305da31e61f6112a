"""``/v1/models``: the models that the farm serves."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from latentfarm.server.context import context_of
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.interactive.models import ServedModel, find_models
from latentfarm.server.openai.shapes import ModelAnswer, ModelList


async def list_models(request: Request) -> Response:
    """Return all models."""
    found = await find_models(context_of(request))
    return JSONResponse(ModelList(data=[_answer(model) for model in found]).model_dump())


async def get_model(request: Request) -> Response:
    """Return one model."""
    name = request.path_params["id"]
    for model in await find_models(context_of(request)):
        if model.name == name:
            return JSONResponse(_answer(model).model_dump())
    raise RequestError(
        404, "model_not_found", f"the model {name[:80]!r} is not served; GET /v1/models lists those that are"
    )


def _answer(model: ServedModel) -> ModelAnswer:
    return ModelAnswer(id=model.name, created=model.since, facts=model.facts)


OPERATIONS = (
    Operation("GET", "/v1/models", list_models, Scope.READ, "List models", answer=ModelList),
    Operation("GET", "/v1/models/{id}", get_model, Scope.READ, "Describe a model", answer=ModelAnswer),
)

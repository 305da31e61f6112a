"""Reads the query of a request and the names in its path, and makes the answers."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from latentfarm.errors import InputError
from latentfarm.names import check_batch_name
from latentfarm.server.api.models import MAX_INDEX
from latentfarm.server.http.body import declared_length, read_json
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.http.validation import invalid_request

QueryModel = TypeVar("QueryModel", bound=BaseModel)


def read_query(request: Request, model: type[QueryModel]) -> QueryModel:
    """Return the query. A parameter may be repeated only where its field is a tuple.

    Raises:
        RequestError: 400 with the parameter and the cure.
    """
    found: dict[str, object] = {}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        field = model.model_fields.get(name)
        if field is not None and isinstance(field.default, tuple):
            found[name] = tuple(values)
        elif len(values) > 1:
            raise RequestError(400, "invalid_request", f"{name[:80]} is repeated; write it once", param=name[:80])
        else:
            found[name] = values[0]
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise invalid_request(error, what="query parameter", known=model.model_fields.keys()) from None


async def read_optional_json(request: Request, model: type[QueryModel]) -> QueryModel:
    """Return the JSON body; without a body, the model's defaults."""
    if declared_length(request) in {None, 0} and "transfer-encoding" not in request.headers:
        return model()
    return await read_json(request, model)


def batch_name(request: Request) -> str:
    """Return the batch's name in the path.

    Raises:
        RequestError: 404, as no batch can have this name.
    """
    name: str = request.path_params["name"]
    try:
        return check_batch_name(name)
    except InputError as error:
        raise RequestError(404, "not_found", str(error)) from None


def job_index(request: Request) -> int:
    """Return the job's index in the path.

    Raises:
        RequestError: 404, as no job can have this index.
    """
    text: str = request.path_params["index"]
    # more digits than any index has: int() would be slow
    if not (text.isascii() and text.isdecimal()) or len(text) > 16 or int(text) > MAX_INDEX:
        raise RequestError(404, "not_found", f"job {text[:40]!r}: write its index, such as 17", param="index")
    return int(text)


def json_answer(value: object, *, status: int = 200) -> Response:
    """Return a model, or what JSON can hold, as the answer."""
    return Response(to_json(value), status, media_type="application/json")

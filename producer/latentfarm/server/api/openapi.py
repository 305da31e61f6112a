"""The OpenAPI 3.1 document of ``/api``, made of the operations and their models."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from latentfarm.server.api.answers import ErrorAnswer
from latentfarm.server.http.operation import Operation, Scope

_REFERENCE = "#/components/schemas/{model}"
_PARAMETERS: dict[str, dict[str, Any]] = {
    "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,63}$", "description": "Name of a batch"},
    "index": {"type": "integer", "minimum": 0, "maximum": 2**53 - 1, "description": "Index of a job"},
    "worker": {"type": "string", "minLength": 1, "maxLength": 200, "description": "Name of a worker"},
}
_ERRORS = {
    400: "The request is invalid; the message has place, value and cure",
    401: "No valid key was sent",
    403: "The key does not allow it, or the request comes from another origin",
    404: "There is no such batch, job, image or worker",
    409: "The batch's state or content does not allow it",
    413: "The body is too large",
    415: "The body has another content type",
    422: "Rows are invalid",
    429: "Too many requests, or the farm is full; try again after Retry-After",
    503: "Redis or the bucket is unavailable; try again after Retry-After",
}
_BODILESS = {304: "The client has it already", 307: "It is at the URL in Location"}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of the farm"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key"},
}


def openapi_document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the document. Every model of a query, a body or an answer is one of its schemas."""
    listed = list(operations)
    schemas = _schemas(listed)
    paths: dict[str, dict[str, Any]] = {}
    for operation in listed:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "latentfarm",
            "version": version("latentfarm"),
            "description": "The farm's own API: batches, jobs, images, workers and events.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _SECURITY},
        # without keys, a server on the loopback address needs none
        "security": [{"bearer": []}, {"key": []}, {}],
    }


def _schemas(operations: Iterable[Operation]) -> dict[str, Any]:
    inputs = {model for each in operations for model in (each.query, each.body, each.form) if model is not None}
    outputs = {each.answer for each in operations if each.answer is not None} | {ErrorAnswer}
    named: list[tuple[type[BaseModel], Any]] = [
        *((model, "validation") for model in inputs),
        *((model, "serialization") for model in outputs),
    ]
    named.sort(key=lambda each: each[0].__name__)
    _, definitions = models_json_schema(named, ref_template=_REFERENCE)
    found: dict[str, Any] = definitions["$defs"]
    return found


def _describe(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.endpoint.__name__,
        "summary": operation.summary,
        "description": f"Scope of the key: {operation.scope}.",
        "parameters": [*_path_parameters(operation.path), *_query_parameters(operation, schemas)],
        "responses": {
            str(operation.status): _success(operation),
            **{str(status): {"description": _BODILESS[status]} for status in operation.also},
            **_failures(operation),
        },
    }
    if operation.body is not None:
        content = {"application/json": {"schema": _reference(operation.body)}}
        if operation.form is not None:
            content["multipart/form-data"] = {"schema": _reference(operation.form)}
        required = any(field.is_required() for field in operation.body.model_fields.values())
        found["requestBody"] = {"required": required or operation.form is not None, "content": content}
    return found


def _path_parameters(path: str) -> list[dict[str, Any]]:
    found = []
    for name in re.findall(r"\{(\w+)\}", path):
        schema = dict(_PARAMETERS[name])
        description = schema.pop("description")
        found.append({"name": name, "in": "path", "required": True, "description": description, "schema": schema})
    return found


def _query_parameters(operation: Operation, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    schema = schemas[operation.query.__name__]
    properties: dict[str, Any] = schema.get("properties", {})
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": found}
        for name, found in properties.items()
    ]


def _success(operation: Operation) -> dict[str, Any]:
    if operation.status == 204:
        return {"description": operation.summary}
    schema = _reference(operation.answer) if operation.answer is not None else {}
    return {"description": operation.summary, "content": {operation.media_type: {"schema": schema}}}


def _failures(operation: Operation) -> dict[str, Any]:
    statuses = {400, 429, 503}
    if operation.scope is not Scope.NONE:
        statuses |= {401, 403}
    if "{" in operation.path:
        statuses.add(404)
    if operation.method != "GET":
        statuses |= {409, 413, 415}
    if operation.form is not None:
        statuses.add(422)
    content = {"application/json": {"schema": _reference(ErrorAnswer)}}
    return {str(status): {"description": _ERRORS[status], "content": content} for status in sorted(statuses)}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}

"""Answers with the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from latentfarm.server.api.models import EmptyQuery
from latentfarm.server.api.openapi import openapi_document
from latentfarm.server.api.request import read_query
from latentfarm.server.http.operation import Operation, Scope


def document_operation(described: Iterable[Operation]) -> Operation:
    """Return the operation that answers with the document of these operations."""
    body = to_json(openapi_document(described))

    async def show_document(request: Request) -> Response:
        read_query(request, EmptyQuery)
        return Response(body, media_type="application/json")

    return Operation("GET", "/api/openapi.json", show_document, Scope.READ, "Return this document", query=EmptyQuery)

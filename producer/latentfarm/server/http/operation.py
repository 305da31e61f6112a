"""Operations: the requests that the server answers, each with the scope that it needs.

A room exports a tuple of operations. The application makes its routes of them, so none can be without a scope, and the
OpenAPI document describes those that name models.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

Endpoint = Callable[[Request], Awaitable[Response]]
Method = Literal["GET", "POST", "DELETE", "PUT", "PATCH"]


class Scope(StrEnum):
    """What a key allows. ``ADMIN`` includes ``SUBMIT``, which includes ``READ``; ``NONE`` needs no key."""

    NONE = "none"
    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


class Rate(StrEnum):
    """Which requests of a key in a minute count together. A page of images sends a request for each of them."""

    REQUESTS = "requests"
    IMAGES = "images"


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    Attributes:
        path: as Starlette writes it, such as ``/api/batches/{name}``.
        rate: with which requests of a key it counts.
        audited: whether an audit line is written when it succeeds: it changes something.
        query, body, answer: models of the query, the JSON body and the JSON answer, for the OpenAPI document.
        form: model of a multipart body that is accepted instead of the JSON one.
        status: of a successful answer.
        also: other statuses of successful answers, which have no body.
        media_type: of a successful answer.
    """

    method: Method
    path: str
    endpoint: Endpoint
    scope: Scope
    summary: str
    rate: Rate = Rate.REQUESTS
    audited: bool = False
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    form: type[BaseModel] | None = None
    status: int = 200
    also: tuple[int, ...] = ()
    media_type: str = "application/json"

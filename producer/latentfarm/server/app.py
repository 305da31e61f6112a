"""The application: the operations of all rooms behind one frame."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from anyio import CapacityLimiter
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from latentfarm.errors import LatentfarmError
from latentfarm.farm import Farm
from latentfarm.server import api, probes
from latentfarm.server.context import ServerContext
from latentfarm.server.http.error_answer import error_answer
from latentfarm.server.http.frame import RequestFrame, RunningRequest
from latentfarm.server.http.operation import Operation
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.live.hub import EventHub
from latentfarm.server.openai import files
from latentfarm.server.settings import ServerSettings

#: every operation of the server; a room adds its own here
OPERATIONS: tuple[Operation, ...] = (*probes.OPERATIONS, *files.OPERATIONS, *api.OPERATIONS)

#: threads for calls of Redis and the bucket
_THREADS = 64
_ANSWERED = (HTTPException, RequestError, LatentfarmError, ValidationError)
#: of every answer that does not set them
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def make_app(farm: Farm, settings: ServerSettings, operations: Sequence[Operation] = OPERATIONS) -> Starlette:
    """Return the application of one server. Nothing is sent to the farm yet."""
    context = ServerContext(farm, settings, EventHub(farm.ledger), CapacityLimiter(_THREADS))
    running: set[RunningRequest] = set()

    @asynccontextmanager
    async def life(_app: Starlette) -> AsyncIterator[None]:
        async with context.hub.run():
            yield

    app = Starlette(
        routes=[_route(operation) for operation in operations],
        middleware=[
            Middleware(
                RequestFrame,
                metrics=context.metrics,
                running=running,
                max_requests=settings.max_connections,
                headers=_HEADERS,
            )
        ],
        exception_handlers=dict.fromkeys(_ANSWERED, _answer_error),
        lifespan=life,
    )
    # a redirected POST loses its body
    app.router.redirect_slashes = False
    app.state.context = context
    app.state.running = running
    return app


def _route(operation: Operation) -> Route:
    async def endpoint(request: Request) -> Response:
        return await operation.endpoint(request)

    return Route(operation.path, endpoint, methods=[operation.method])


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_answer(request, error)

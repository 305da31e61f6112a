"""The application: the operations of all rooms behind one frame."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing

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
from latentfarm.server import a1111, api, dashboard, probes
from latentfarm.server.context import ServerContext
from latentfarm.server.http.error_answer import error_answer
from latentfarm.server.http.frame import RequestFrame, RunningRequest
from latentfarm.server.http.operation import Operation
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.image_reader import ImageReader
from latentfarm.server.interactive.renderer import InteractiveRenderer
from latentfarm.server.live.hub import EventHub
from latentfarm.server.openai import batches, files, images, model_list, stored_files
from latentfarm.server.openai.batch_submission import BatchSubmitter
from latentfarm.server.openai.sweep import Sweeper
from latentfarm.server.openai.uploads import UploadSlots
from latentfarm.server.security import session_operations
from latentfarm.server.security.guard import Guard
from latentfarm.server.security.response_headers import origin_of, response_headers
from latentfarm.server.settings import ServerSettings

#: every operation of the server; a room adds its own here
OPERATIONS: tuple[Operation, ...] = (
    *probes.OPERATIONS,
    *session_operations.OPERATIONS,
    *model_list.OPERATIONS,
    *images.OPERATIONS,
    *files.OPERATIONS,
    *batches.OPERATIONS,
    *a1111.OPERATIONS,
    *api.OPERATIONS,
    *dashboard.OPERATIONS,
)

#: threads for calls of Redis and the bucket
_THREADS = 64
_ANSWERED = (HTTPException, RequestError, LatentfarmError, ValidationError)


def make_app(farm: Farm, settings: ServerSettings, operations: Sequence[Operation] = OPERATIONS) -> Starlette:
    """Return the application of one server. Nothing is sent to the farm yet.

    Raises:
        InputError: the server would be open to other machines, or its keys are invalid.
    """
    context = ServerContext(
        farm,
        settings,
        EventHub(farm.ledger),
        CapacityLimiter(_THREADS),
        ImageReader(farm.bucket),
        stored_files.input_policy(farm),
    )
    guard = Guard(settings, farm.ledger, context.run)
    running: set[RunningRequest] = set()
    headers = dict(response_headers())
    submitter, sweeper = BatchSubmitter(farm), Sweeper(farm)
    interactive = InteractiveRenderer(context)

    @asynccontextmanager
    async def life(_app: Starlette) -> AsyncIterator[None]:
        headers.update(response_headers(await context.run(origin_of, farm.bucket)))
        with closing(context.images):
            async with context.hub.run(), submitter.run(), sweeper.run():
                yield

    app = Starlette(
        routes=_routes(operations, guard),
        middleware=[
            Middleware(
                RequestFrame,
                metrics=context.metrics,
                running=running,
                max_requests=settings.max_connections,
                headers=headers,
            )
        ],
        exception_handlers=dict.fromkeys(_ANSWERED, _answer_error),
        lifespan=life,
    )
    # a redirected POST loses its body
    app.router.redirect_slashes = False
    app.state.context = context
    app.state.guard = guard
    app.state.running = running
    app.state.submitter = submitter
    app.state.uploads = UploadSlots()
    app.state.interactive = interactive
    return app


def _routes(operations: Sequence[Operation], guard: Guard) -> list[Route]:
    """Return a route for each path, so that the answer to another method lists all methods of the path."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    return [_route(path, methods, guard) for path, methods in by_path.items()]


def _route(path: str, operations: Mapping[str, Operation], guard: Guard) -> Route:
    async def endpoint(request: Request) -> Response:
        operation = operations["GET" if request.method == "HEAD" else request.method]
        await guard.admit(request, operation)
        answer = await operation.endpoint(request)
        guard.record(request, operation, answer)
        return answer

    return Route(path, endpoint, methods=list(operations))


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_answer(request, error)

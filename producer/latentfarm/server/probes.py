"""``/livez``, ``/readyz`` and ``/metrics``, for an orchestrator and Prometheus."""

from __future__ import annotations

import logging

import anyio
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from latentfarm.errors import LatentfarmError
from latentfarm.server.context import ServerContext, context_of, of_server
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.live.cache import Cached

log = logging.getLogger(__name__)

#: probes of several systems in one second share one check
_CHECKED_S = 1.0
_CHECK_TIMEOUT_S = 3.0


class _Readiness:
    """Whether Redis and the bucket answer."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._cached = Cached[str](_CHECKED_S)

    async def problem(self) -> str:
        """Return what is unavailable, empty if nothing is. It names no host: any client may read it."""
        return await self._cached.get("", self._check)

    async def _check(self) -> str:
        if self._context.stopping.is_set():
            return "the server is ending"
        farm = self._context.farm
        problems: list[str] = []

        async def check(name: str, call: object) -> None:
            with anyio.move_on_after(_CHECK_TIMEOUT_S) as timer:
                try:
                    await anyio.to_thread.run_sync(call, abandon_on_cancel=True)  # type: ignore[arg-type]
                except LatentfarmError as error:
                    log.warning("not ready: %s", error)
                    problems.append(name)
            if timer.cancelled_caught:
                problems.append(name)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(check, "Redis", farm.ledger.ping)
            tasks.start_soon(check, "the bucket", farm.bucket.head)
        return f"unavailable: {', '.join(sorted(problems))}" if problems else ""


async def livez(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    readiness = of_server(request, "readiness", lambda: _Readiness(context_of(request)))
    problem = await readiness.problem()
    return PlainTextResponse(f"{problem or 'ok'}\n", status_code=503 if problem else 200)


async def metrics(request: Request) -> Response:
    registry = context_of(request).metrics.registry
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


OPERATIONS = (
    Operation("GET", "/livez", livez, Scope.NONE, "Answer as long as the server runs"),
    Operation("GET", "/readyz", readyz, Scope.NONE, "Answer 200 while Redis and the bucket answer"),
    Operation("GET", "/metrics", metrics, Scope.NONE, "Export the server's metrics to Prometheus"),
)

"""What the endpoints of all rooms use: the farm, the settings, the hub of events and the metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import anyio
from anyio import CapacityLimiter
from starlette.requests import Request

from latentfarm.farm import Farm
from latentfarm.inputs.policy import InputPolicy
from latentfarm.server.image_reader import ImageReader
from latentfarm.server.live.cache import Cached
from latentfarm.server.live.hub import EventHub
from latentfarm.server.metrics import ServerMetrics
from latentfarm.server.settings import ServerSettings

Returned = TypeVar("Returned")


@dataclass(frozen=True)
class ServerContext:
    """The farm, the settings, the hub, the reader of images, the policy of inputs and the metrics of one server."""

    farm: Farm
    settings: ServerSettings
    hub: EventHub
    #: threads for calls of Redis and the bucket, which block
    threads: CapacityLimiter
    images: ImageReader
    #: the sources that clients' rows may name
    inputs: InputPolicy
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    #: what each request for images looks up, such as the models of the farm
    looked_up: Cached[Any] = field(default_factory=lambda: Cached(1.0))
    #: set when the server begins to end
    stopping: anyio.Event = field(default_factory=anyio.Event)

    async def run(self, function: Callable[..., Returned], *args: object, **options: object) -> Returned:
        """Return what a blocking function returns, called on a thread."""
        return await anyio.to_thread.run_sync(partial(function, *args, **options), limiter=self.threads)


def of_server(request: Request, name: str, make: Callable[[], Returned]) -> Returned:
    """Return an object of which each server has one, made when it is first needed. ``name`` is unique among them."""
    state = request.app.state
    if not hasattr(state, name):
        setattr(state, name, make())
    return cast("Returned", getattr(state, name))


def context_of(request: Request) -> ServerContext:
    """Return the context of the server that answers a request."""
    return cast("ServerContext", request.app.state.context)

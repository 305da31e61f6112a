"""Answers that many clients poll: made and encoded once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from latentfarm.server.context import ServerContext, context_of, of_server
from latentfarm.server.live.cache import Cached

#: seconds for which an answer is kept
FRESH_S = 0.5


class PolledAnswers:
    """The answers of one server. They are outdated by each event of the ledger, and by this server's own decisions."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._cached = Cached[bytes](FRESH_S)
        self._decisions = 0

    async def get(self, function: Callable[..., object], *args: object) -> bytes:
        """Return as JSON what a blocking function returns for these arguments."""
        # the event: a client that learns of a change must not read an answer from before it.
        # the name: a bound method would be another key for each request
        key = (self._decisions, self._context.hub.latest_id, function.__qualname__, *args)
        return await self._cached.get(key, partial(self._context.run, _encode, function, self._context.farm, *args))

    def forget(self) -> None:
        """Make every answer outdated: a client that has paused a batch must not read that it runs."""
        self._decisions += 1


def _encode(function: Callable[..., object], *args: object) -> bytes:
    return to_json(function(*args))


def polled_answers(request: Request) -> PolledAnswers:
    """Return the answers of the server that answers a request."""
    return of_server(request, "polled", lambda: PolledAnswers(context_of(request)))


async def polled_answer(request: Request, function: Callable[..., object], *args: object) -> Response:
    """Answer with what a function returns for the farm and these arguments, which identify the answer."""
    return Response(await polled_answers(request).get(function, *args), media_type="application/json")

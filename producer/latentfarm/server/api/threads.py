"""The threads of calls that may take long, apart from those of all other requests.

A bucket that hangs holds a thread for as long as boto3 tries, and a million rows for half a minute. On shared threads
they would stop even the polls of progress, which need Redis only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import anyio
from anyio import CapacityLimiter
from starlette.requests import Request

from latentfarm.server.context import of_server

Returned = TypeVar("Returned")

_BUCKET_CALLS, _SUBMISSIONS = 32, 4


@dataclass(frozen=True)
class _Threads:
    bucket: CapacityLimiter = field(default_factory=partial(CapacityLimiter, _BUCKET_CALLS))
    submissions: CapacityLimiter = field(default_factory=partial(CapacityLimiter, _SUBMISSIONS))


def _threads(request: Request) -> _Threads:
    return of_server(request, "api_threads", _Threads)


async def run_with_bucket(
    request: Request, function: Callable[..., Returned], *args: object, **options: object
) -> Returned:
    """Return what a function returns that needs the bucket, called on a thread."""
    return await anyio.to_thread.run_sync(partial(function, *args, **options), limiter=_threads(request).bucket)


async def run_submission(request: Request, function: Callable[..., Returned], *args: object) -> Returned:
    """Return what a function returns that reads all rows of a source, called on a thread."""
    return await anyio.to_thread.run_sync(partial(function, *args), limiter=_threads(request).submissions)

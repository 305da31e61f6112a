"""One batch of images that a client waits for, from its submission to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NoReturn

import anyio

from latentfarm.batch_state import FINAL
from latentfarm.errors import InputError, UnavailableError
from latentfarm.job_state import JobState
from latentfarm.ledger.events import Event
from latentfarm.ledger.live_reports import LiveReport
from latentfarm.names import parse_job_name
from latentfarm.server.context import ServerContext
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.interactive.models import NO_WORKER_RETRY_S
from latentfarm.server.live.hub import Item, SlowSubscriberError, Subscription
from latentfarm.storage import results

#: events say when a batch has ended; one may be lost, so the ledger is read too: at first soon, then seldom
_SHORTEST_POLL_S, _FIRST_POLL_S, _LONGEST_POLL_S = 0.05, 0.25, 5.0
#: errors of a job that another request does not have, so it may be sent again
_PASSING = frozenset({"oom", "upload_error", "commit_error", "manifest_unreadable", "poison"})
#: errors of a job that its request causes
_OF_REQUEST = frozenset(
    {
        *(
            "scheduler",
            "prompt_too_complex",
            "clip_skip_out_of_range",
            "size_not_supported",
            "non_finite",
            "blank_image",
        ),
        *("input_required", "input_invalid", "input_too_large", "input_size", "input_not_supported"),
        *("adapter_unknown", "adapter_mismatch", "adapter_limit", "unsafe"),
    }
)


@dataclass(frozen=True)
class RenderedImage:
    """A finished image: its file, and its result as ``Batch.results`` has it: request and receipt."""

    index: int
    body: bytes
    result: dict[str, Any]


@dataclass(frozen=True)
class Preview:
    """An estimate of an image while it is made. ``number`` counts those of one image from 0."""

    index: int
    number: int
    body: bytes
    report: LiveReport


class Rendering:
    """The images of one batch. ``batch`` is its name, ``model`` its model, ``requests`` are the fields of its jobs."""

    def __init__(
        self,
        context: ServerContext,
        batch: str,
        model: str,
        requests: list[dict[str, Any]],
        items: Subscription,
    ) -> None:
        self.batch = batch
        self.model = model
        self.requests = requests
        #: whether no job of the batch will change any more
        self.ended = False
        self._context = context
        self._items: Subscription | None = items
        self._poll_s = _FIRST_POLL_S
        settings = context.settings
        now = time.monotonic()
        self._deadline = now + settings.render_timeout_s
        #: the last moments at which the ledger has answered, and a worker was there
        self._answered = self._served = self._polled_at = now

    async def previews(self) -> AsyncIterator[Preview]:
        """Yield the previews of all images as they come, at most one of each number, until the batch has ended.

        Raises:
            RequestError: as ``images``.
        """
        seen: set[tuple[int, int]] = set()
        while not self.ended:
            item = await self._next()
            if not isinstance(item, LiveReport) or not item.preview:
                continue
            _, index = parse_job_name(item.job)
            # after the death of its worker, another one begins an image again
            if (index, item.number) in seen:
                continue
            seen.add((index, item.number))
            try:
                body = await self._context.run(self._context.farm.bucket.get, item.preview)
            except (UnavailableError, InputError):
                # the image itself does not depend on it
                continue
            yield Preview(index, item.number, body, item)

    async def images(self) -> list[RenderedImage]:
        """Return the images, in order, when all are finished.

        Raises:
            RequestError: one failed, the batch was cancelled, no worker is there, or the time is over.
        """
        while not self.ended:
            await self._next()
        found = await self._results()
        bodies: list[bytes] = [b""] * len(found)

        async def read(at: int, key: str, sha256: str) -> None:
            bodies[at] = await self._context.run(self._context.images.read, key, sha256)

        await asyncio.gather(*(read(at, result["key"], result["sha256"]) for at, result in enumerate(found)))
        self._context.metrics.images.labels(self.model).inc(len(found))
        return [RenderedImage(at, body, result) for at, (body, result) in enumerate(zip(bodies, found, strict=True))]

    async def results(self) -> list[dict[str, Any]]:
        """Return the results without the files; see ``images``."""
        while not self.ended:
            await self._next()
        found = await self._results()
        self._context.metrics.images.labels(self.model).inc(len(found))
        return found

    async def _results(self) -> list[dict[str, Any]]:
        farm = self._context.farm

        def read() -> list[dict[str, Any]]:
            return list(results.read_range(farm.ledger, farm.bucket, self.batch, range(len(self.requests))))

        found = await self._context.run(read)
        for result in found:
            if result["state"] == JobState.FAILED.word:
                _raise_failure(result.get("error") or {})
            if result["state"] != JobState.DONE.word:
                raise RequestError(409, "cancelled", "the images were cancelled; send the request again")
        return [
            {"model": self.model, **result, "request": {**request, **result.get("request", {})}}
            for request, result in zip(self.requests, found, strict=True)
        ]

    async def _next(self) -> Item | None:
        """Return the next event or report of the batch, or None after a look into the ledger."""
        item: Item | None = None
        # reports that follow each other quickly must not keep the ledger from being read
        if (wait_s := self._poll_at() - time.monotonic()) > 0:
            with anyio.move_on_after(wait_s):
                item = await self._item()
        if item is None:
            self._poll_s = min(2 * self._poll_s, _LONGEST_POLL_S)
            await self._look()
        elif isinstance(item, Event) and item.event in {"complete", "cancelled", "deleted"}:
            self.ended = True
        return item

    def _poll_at(self) -> float:
        """Return the moment at which the ledger is read again."""
        moments = [self._deadline, self._polled_at + self._poll_s]
        if self._served < self._polled_at:
            moments.append(self._served + self._context.settings.worker_wait_s)
        return max(min(moments), self._polled_at + _SHORTEST_POLL_S)

    async def _item(self) -> Item | None:
        if self._items is None:
            await anyio.sleep_forever()
        assert self._items is not None  # noqa: S101
        try:
            return await anext(self._items)
        except (SlowSubscriberError, StopAsyncIteration):
            # from here on, the ledger is read again and again
            self._items = None
            return None

    async def _look(self) -> None:
        """Read the ledger: whether the batch has ended, and whether a worker is there."""
        now = self._polled_at = time.monotonic()
        wait_s = self._context.settings.worker_wait_s
        try:
            ended, served = await self._context.run(self._state)
        except UnavailableError:
            # its jobs outlive an outage
            if now - self._answered > wait_s:
                raise
            return
        self._answered = now
        self.ended = ended
        if served:
            self._served = now
        elif not ended and now - self._served >= wait_s:
            text = f"no worker serves the model {self.model!r} now; start one, or try again later"
            raise RequestError(503, "no_worker", text, retry_after_s=NO_WORKER_RETRY_S)
        if not ended and now >= self._deadline:
            limit = self._context.settings.render_timeout_s
            text = f"the images were not finished within {limit:g} s, and are cancelled; request fewer or smaller ones"
            raise RequestError(504, "timeout", text)

    def _state(self) -> tuple[bool, bool]:
        ledger = self._context.farm.ledger
        try:
            (batch,) = ledger.batch_summaries([self.batch])
        except ValueError:
            raise RequestError(409, "cancelled", "the images were deleted; send the request again") from None
        # a worker that drains finishes the jobs that it has
        served = batch.leased > 0 or any(not worker.draining for worker in ledger.worker_records(self.model))
        return batch.state in FINAL, served


def _raise_failure(error: dict[str, str]) -> NoReturn:
    """Raise the error of a job. Unless the request has caused it, its message may have a host's name or a path."""
    code = error.get("code", "failed")
    if code in _OF_REQUEST:
        raise RequestError(400, code, error.get("message", ""))
    text = f"the image could not be rendered ({code}); the worker's log has the reason"
    raise RequestError(500, code, text, retry_after_s=1 if code in _PASSING else None)

"""Renders images that a client waits for: submits them as a batch of their own, and waits for their end."""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import anyio
from starlette.requests import Request

from latentfarm.batch import Batch
from latentfarm.batch_kind import BatchKind
from latentfarm.edit_fields import SOURCE_FIELDS, SOURCE_LIST_FIELDS
from latentfarm.errors import LatentfarmError, NotFoundError
from latentfarm.ledger.constants import INTERACTIVE_PRIORITY
from latentfarm.ledger.events import Event
from latentfarm.ledger.live_reports import LiveReport
from latentfarm.server.context import ServerContext
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.interactive.inputs import run_with_inputs
from latentfarm.server.interactive.models import facts_of_model
from latentfarm.server.interactive.rendering import Rendering
from latentfarm.server.live.hub import Item
from latentfarm.server.security.access import access_of
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.manifest import NOT_THE_REQUEST, Part, PartWriter
from latentfarm.storage.part_codec import parse
from latentfarm.submission.prompts import ReadOptions, RowError
from latentfarm.submission.request import Request as Submitted
from latentfarm.submission.request import SubmitOptions, make_request

log = logging.getLogger(__name__)

#: seconds after which a client tries again if too many images wait
_FULL_RETRY_S = 5


class InteractiveRenderer:
    """Renders the images of requests. One for each server."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        #: images by owner that are not in the ledger yet
        self._submitting: Counter[str] = Counter()

    @asynccontextmanager
    async def render(
        self,
        request: Request,
        rows: Sequence[dict[str, Any] | str],
        *,
        model: str,
        reading: ReadOptions | None = None,
        partial_images: int = 0,
    ) -> AsyncIterator[Rendering]:
        """Submit rows as one batch, which is cancelled if the block ends before its images do.

        Args:
            request: the request; the batch belongs to its key.
            rows: as ``Farm.submit`` takes them.
            model: an alias that ``resolve_model`` has returned.
            reading: how the rows are read.
            partial_images: previews of each image.

        Raises:
            RequestError: a row is invalid, or too many images wait.
        """
        context, owner = self._context, access_of(request).name
        name = f"interactive-{secrets.token_hex(8)}"
        submitted = make_request(
            list(rows), reading, model=model, inputs=context.inputs, partial_images=partial_images or None
        )
        submitted = submitted.with_facts(await facts_of_model(context, model))
        if any(map(_has_inputs, rows)):
            requests = await run_with_inputs(request, _requests, submitted, name, context.farm.bucket)
        else:
            requests = _requests(submitted, name, None)
        prefix = f"{name}/"

        def wanted(item: Item) -> bool:
            if isinstance(item, LiveReport):
                return item.job.startswith(prefix)
            return isinstance(item, Event) and item.batch == name

        ended = False
        async with context.hub.subscribe(wanted) as items:
            try:
                with self._reserved(owner, len(requests)):
                    await context.run(self._submit, submitted, name, owner, len(requests))
                rendering = Rendering(context, name, model, requests, items)
                yield rendering
                ended = rendering.ended
            finally:
                if not ended:
                    # the client has hung up, or does not wait any longer
                    with anyio.CancelScope(shield=True):
                        await context.run(self._cancel, name)

    def _submit(self, submitted: Submitted, name: str, owner: str, images: int) -> None:
        self._check_room(owner, images)
        options = SubmitOptions(
            priority=INTERACTIVE_PRIORITY,
            failure_budget=0,
            validate_first=False,
            kind=BatchKind.INTERACTIVE,
            owner=owner,
            keep_s=self._context.settings.keep_s,
        )
        self._context.farm.enqueue(submitted, options, batch=name)

    @contextmanager
    def _reserved(self, owner: str, images: int) -> Iterator[None]:
        """Count images that are being submitted, so that requests of the same moment see each other."""
        self._submitting[owner] += images
        try:
            yield
        finally:
            self._submitting[owner] -= images
            if not self._submitting[owner]:
                del self._submitting[owner]

    def _check_room(self, owner: str, images: int) -> None:
        """Refuse images beyond the limits. Several servers may exceed them by what they submit at one moment."""
        settings = self._context.settings
        found = self._context.farm.ledger.unfinished_by_owner()
        waiting = Counter({name: count for (kind, name), count in found.items() if kind is BatchKind.INTERACTIVE})
        waiting.update(dict(self._submitting))
        for count, limit, whose in (
            (waiting[owner], settings.max_pending_images_per_key, "the key"),
            (waiting.total(), settings.max_pending_images, "the farm"),
        ):
            if count > limit:
                if images > limit:
                    text = f"the request has {images} images, and {whose} may wait for {limit}; request fewer"
                    raise RequestError(400, "too_many_images", text, param="n")
                raise RequestError(
                    429,
                    "too_many_images",
                    f"{whose} has {count - images} of {limit} images that may wait; try again later, or request fewer",
                    retry_after_s=_FULL_RETRY_S,
                )

    def _cancel(self, name: str) -> None:
        try:
            Batch(self._context.farm.connection, name).cancel(flush=False)
        except NotFoundError:
            # it was refused before it was created
            return
        except LatentfarmError as error:
            log.warning("%s is not cancelled, so its images are rendered in vain: %s", name, error)


def _has_inputs(row: dict[str, Any] | str) -> bool:
    return isinstance(row, dict) and not row.keys().isdisjoint({*SOURCE_FIELDS, *SOURCE_LIST_FIELDS})


def _requests(submitted: Submitted, batch: str, bucket: Bucket | None) -> list[dict[str, Any]]:
    """Return the fields of each job that determine its image, as the manifest will have them.

    Their inputs are stored in the bucket, if one is given; that blocks.

    Raises:
        RequestError: a row is invalid.
    """
    writer = PartWriter(batch, submitted.defaults, submitted.facts)
    parts: list[Part] = []
    for number, row in submitted.rows(bucket):
        if isinstance(row, RowError):
            raise RequestError(400, "invalid_request", row.text.removeprefix("row 1: "), param=row.reason)
        parts += writer.add(row, number)
    parts += writer.flush()
    entries = [parse(line, name=batch) for part in parts for line in part.lines.splitlines()]
    if any(entry.get("draft") for entry in entries):
        text = "draft: who waits for an image gets a whole one; leave it out, or submit a batch"
        raise RequestError(400, "not_supported", text, param="draft")
    return [{name: value for name, value in entry.items() if name not in NOT_THE_REQUEST} for entry in entries]


def renderer_of(request: Request) -> InteractiveRenderer:
    """Return the renderer of the server that answers a request."""
    return cast("InteractiveRenderer", request.app.state.interactive)

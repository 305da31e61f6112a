"""How far the images are that clients of a key wait for: from the ledger, and the steps that workers report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.requests import Request

from latentfarm.batch_kind import BatchKind
from latentfarm.errors import NotFoundError
from latentfarm.farm import Farm
from latentfarm.ledger import BatchRecord
from latentfarm.ledger.live_reports import LiveReport
from latentfarm.server.context import of_server
from latentfarm.server.live.hub import EventHub, Item, SlowSubscriberError

#: the least progress of images that are not done, as in the web UI
_BEGUN = 0.01


@dataclass
class Steps:
    """The steps of the images of one batch that this server waits for, by job."""

    began: float = field(default_factory=time.monotonic)
    latest: dict[str, LiveReport] = field(default_factory=dict)


class RunningImages:
    """Steps by batch, of those batches that this server waits for."""

    def __init__(self) -> None:
        self._steps: dict[str, Steps] = {}

    @asynccontextmanager
    async def follow(self, hub: EventHub, batch: str) -> AsyncIterator[None]:
        """Keep the latest step of each image of a batch meanwhile."""
        steps = self._steps[batch] = Steps()
        prefix = f"{batch}/"

        def wanted(item: Item) -> bool:
            return isinstance(item, LiveReport) and item.job.startswith(prefix)

        async def keep() -> None:
            try:
                async with hub.subscribe(wanted) as reports:
                    async for report in reports:
                        steps.latest[cast("LiveReport", report).job] = cast("LiveReport", report)
            except SlowSubscriberError:
                # the progress stays as it is
                return

        # no task group: it would wrap the errors of the block
        keeper = asyncio.create_task(keep())
        try:
            yield
        finally:
            keeper.cancel()
            del self._steps[batch]

    def steps(self, batch: str) -> Steps | None:
        """Return the steps of a batch, None if another server waits for it."""
        return self._steps.get(batch)


def running_images(request: Request) -> RunningImages:
    """Return the running images of the server that answers a request."""
    return of_server(request, "running_images", RunningImages)


def find_batches(farm: Farm, owner: str) -> list[BatchRecord]:
    """Return the batches whose images clients of a key wait for, at any server."""
    ledger = farm.ledger
    if not ledger.unfinished_by_owner().get((BatchKind.INTERACTIVE, owner)):
        return []
    active = [name for model in ledger.model_records() for name in ledger.active_batches(model.name)]
    found = []
    for summary in ledger.batch_summaries(active):
        # one may be deleted meanwhile
        with suppress(NotFoundError):
            if summary.kind is BatchKind.INTERACTIVE and summary.owner == owner:
                found.append(ledger.batch(summary.name))
    return found


def progress_of(batches: list[BatchRecord], running: RunningImages) -> dict[str, Any]:
    """Return the answer of ``progress``: of all images that clients of one key wait for."""
    images = sum(batch.total for batch in batches)
    done = sum(batch.total - batch.pending - batch.leased for batch in batches)
    known = [steps for batch in batches if (steps := running.steps(batch.name))]
    reports = [report for steps in known for report in steps.latest.values() if report.step < report.steps]
    progress = 0.0
    if images:
        progress = min(1.0, max(_BEGUN, (done + sum(report.step / report.steps for report in reports)) / images))
    elapsed = time.monotonic() - min((steps.began for steps in known), default=time.monotonic())
    furthest = max(reports, key=lambda report: report.step, default=None)
    return {
        "progress": progress,
        "eta_relative": elapsed / progress - elapsed if progress else 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": "txt2img" if images else "",
            "job_count": images,
            "job_timestamp": "0",
            "job_no": done,
            "sampling_step": furthest.step if furthest else 0,
            "sampling_steps": furthest.steps if furthest else 0,
        },
        "current_image": None,
        "textinfo": None,
    }

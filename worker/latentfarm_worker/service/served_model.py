"""One model that a worker serves: its name in the ledger, its counters and threads, its engine and its render loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from latentfarm.ledger import HeartbeatReply, Ledger
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm_worker.calibration.cache import device_name
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.mini import locate
from latentfarm_worker.models.facts import facts_of
from latentfarm_worker.safety.gate import open_gate
from latentfarm_worker.scoring.scorers import Scorers
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.image_review import ImageReview
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.service.threads import Threads


class ServedModel:
    """A model of a worker, on which it reports to the ledger.

    A worker of several models has a name for each, so that leases, rates and images on the device are distinguished.

    Args:
        settings: those of the worker, with this model.
        name: the worker's name for this model in the ledger.
        beside: another model of the worker, whose registry of metrics and list of threads are shared.
    """

    def __init__(self, settings: Settings, name: str, *, beside: ServedModel | None = None) -> None:
        self.settings = settings
        self.alias = settings.model
        self.name = name
        self.metrics: Metrics = Metrics(self.alias, instruments=beside.metrics.instruments if beside else None)
        self.threads: Threads = beside.threads.with_metrics(self.metrics) if beside else Threads(self.metrics)
        self.engine: Engine
        self.render_loop: RenderLoop
        self.review: ImageReview
        self.info: dict[str, str | int] = {}

    def take_engine(self, engine: Engine, scorers: Scorers) -> None:
        """Render with an engine from now on, which is warm, and score with the worker's scorers.

        Raises:
            ModelError: the settings need a safety checker that is not there or cannot be loaded.
        """
        self.engine = engine
        settings = self.settings
        source = str(locate(settings.model_source, alias=self.alias))
        self.review = ImageReview(open_gate(settings.safety, settings.safety_checker, model=source), scorers)
        family = engine.family
        reviewed = {"safety_checker": self.review.safety.available, "scorers": scorers.names}
        facts = facts_of(family).model_copy(update=reviewed)
        self.info = {
            "device": family.device.type,
            "device_name": device_name(family.device),
            "dtype": str(family.dtype).removeprefix("torch."),
            "slots": engine.slots,
            "facts": facts.model_dump_json(),
            "adapters": family.loras.catalogue.announcement(),
        }

    def start(self, ledger: Ledger, bucket: Bucket, hooks: WorkerHooks, *, ready: Callable[[], bool]) -> None:
        """Create the render loop.

        Args:
            ledger: the ledger.
            bucket: the bucket.
            hooks: the callbacks to the process.
            ready: returns whether the worker leases jobs.
        """
        self.render_loop = RenderLoop(
            ledger=ledger,
            bucket=bucket,
            engine=self.engine,
            model=self.alias,
            worker=self.name,
            lease_ttl_s=self.settings.lease_ttl_s,
            embed_metadata=self.settings.embed_metadata,
            review=self.review,
            hooks=hooks,
            metrics=self.metrics,
            threads=self.threads,
        )
        engine, render_loop = self.engine, self.render_loop
        self.metrics.watch(
            {
                "slots": ("Guided images that fit the engine's batch.", lambda: engine.slots),
                "slots_busy": ("Slots in use; an image without guidance uses half a slot.", lambda: engine.slots_taken),
                "leases_held": ("Jobs that this worker has leased.", lambda: render_loop.leases_held),
                "upload_backlog": ("Finished images that are not committed yet.", lambda: render_loop.backlog),
                "ready": ("1 if the worker leases jobs.", ready),
            },
            {"worker": self.name, "device": str(self.info["device"]), "dtype": str(self.info["dtype"])},
        )

    def watch_memory(self) -> None:
        """Report the memory of a GPU, which the models of a worker share."""
        device = self.engine.family.device
        if device.type == "cuda":
            self.metrics.watch_memory(
                lambda: {
                    "allocated": torch.cuda.memory_allocated(device),
                    "reserved": torch.cuda.memory_reserved(device),
                    "total": torch.cuda.get_device_properties(device).total_memory,
                }
            )

    def heartbeat(self, ledger: Ledger) -> HeartbeatReply:
        """Report that the worker lives, and what it measured since the last time."""
        about: dict[str, Any] = {**self.info, "draining": int(self.render_loop.draining)}
        return self.metrics.report(lambda measured: ledger.heartbeat(self.alias, self.name, measured, about=about))

"""What a worker process keeps for its whole life: the loaded model and the threads around it."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from threading import Event, Thread

import torch
from celery import Celery

from latentfarm import doorbell
from latentfarm.errors import SchemaError, UnavailableError
from latentfarm.ledger import Ledger
from latentfarm.monitoring.http_server import MetricsServer
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.results import discard_leftovers, flush_full_parts
from latentfarm.webhooks.deliver import deliver_due
from latentfarm_worker.build import load_model, make_engine
from latentfarm_worker.calibration.cache import device_name
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.engine.previews import PreviewRecorder
from latentfarm_worker.service.health import Health
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.render_loop import RenderLoop, WorkerHooks
from latentfarm_worker.service.shutdown import Shutdown
from latentfarm_worker.service.spot import InstanceMetadata, SpotWatch
from latentfarm_worker.supervise.shared_state import Phase, SharedState
from latentfarm_worker.supervise.supervisor import EXIT_BROKEN
from latentfarm_worker.supervise.watchdog import start_self_watchdog

log = logging.getLogger(__name__)


def _leave() -> None:
    """Ask this process to end, by the signal that everybody uses: there is one way out."""
    os.kill(os.getpid(), signal.SIGTERM)


def _serve(settings: Settings, metrics: Metrics, health: Health) -> MetricsServer | None:
    if not settings.metrics_address:
        return None
    return MetricsServer(settings.metrics_address, metrics.registry, live=health.live, ready=health.ready)


def _watch(renderer: RenderLoop, engine: Engine, health: Health, about: Mapping[str, str | int]) -> None:
    """Have the metrics ask the renderer and its engine at each scrape."""
    renderer.metrics.watch(
        {
            "slots": ("Guided pictures that fit the engine's batch.", lambda: engine.slots),
            "slots_busy": (
                "Slots that are taken; a picture without guidance takes half a one.",
                lambda: engine.slots_taken,
            ),
            "leases_held": ("Jobs that this worker has leased.", lambda: renderer.leases_held),
            "upload_backlog": ("Finished pictures that are not committed yet.", lambda: renderer.backlog),
            "ready": ("1 if the worker leases jobs.", lambda: not health.ready()),
        },
        {name: str(about[name]) for name in ("worker", "device", "dtype")},
    )
    device = engine.family.device
    if device.type == "cuda":
        renderer.metrics.watch_memory(
            lambda: {
                "allocated": torch.cuda.memory_allocated(device),
                "reserved": torch.cuda.memory_reserved(device),
                "total": torch.cuda.get_device_properties(device).total_memory,
            }
        )


class Worker(WorkerHooks):
    """A worker: its renderer, the way out, a thread that says it lives, sweeps and rings missing doorbells, and others.

    ``worker`` is its name in the ledger: the supervisor's, if it is ``supervised``, whatever process this is.
    """

    def __init__(self, settings: Settings, app: Celery, *, pulse: SharedState, worker: str, supervised: bool) -> None:
        settings.require()
        super().__init__(pulse)
        # so that a supervisor that is about to kill this process can have it say where it stands, lock or no lock
        faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
        self.settings = settings
        self.worker = worker
        self._app = app
        metrics, health = Metrics(settings.model), Health(pulse, hang_s=settings.stall_timeout_s)
        self._metrics_server = _serve(settings, metrics, health)
        self._ledger = Ledger.connect(settings.redis_url)
        self._bucket = Bucket.connect(settings)
        self._bucket.probe()
        with suppress(UnavailableError):
            # a ledger of another layout is refused before the model is loaded; one that is away is waited for
            self._ledger.count_pending(settings.model)
        family = load_model(settings)
        tracer = PreviewRecorder(family)
        engine = make_engine(family, settings, on_step=tracer)
        engine.warm_up()
        self.renderer = RenderLoop(
            ledger=self._ledger,
            bucket=self._bucket,
            engine=engine,
            tracer=tracer,
            model=settings.model,
            worker=self.worker,
            lease_s=settings.lease_ttl_s,
            embed_metadata=settings.embed_metadata,
            host=self,
            metrics=metrics,
        )
        self._about: dict[str, str | int] = {
            "device": family.device.type,
            "device_name": device_name(family.device),
            "dtype": str(family.dtype).removeprefix("torch."),
            "slots": engine.slots,
        }
        _watch(self.renderer, engine, health, {"worker": worker, **self._about})
        if not supervised:
            start_self_watchdog(pulse, hang_s=settings.stall_timeout_s, exit_code=EXIT_BROKEN)
        self.drain = Shutdown(self.renderer, drain_s=settings.shutdown_timeout_s)
        self._spot: SpotWatch | None = None
        if settings.spot_provider == "aws":
            self._spot = SpotWatch(InstanceMetadata(settings.metadata_url), _leave)
        self._stop = Event()
        self._housekeeper = Thread(target=self._keep_house, name="housekeeper", daemon=True)
        self._housekeeper.start()
        # a thread of its own: a slow endpoint must not keep the worker from saying that it lives
        self._messenger = Thread(target=self._tell_ends, name="messenger", daemon=True)
        self._messenger.start()
        self.pulse.enter(Phase.IDLE)
        health.renderer = self.renderer
        place = f"{family.device}, {engine.slots} slots, process {os.getpid()}"
        log.info("worker %s serves %s on %s", worker, settings.model, place)

    def wake_others(self) -> None:
        """Ring for jobs that were given back: the doorbells that brought them here are used up."""
        model = self.settings.model
        try:
            doorbell.ring(self._ledger.redis, self._app, model, self._ledger.count_pending(model))
        except UnavailableError as error:
            log.warning("no doorbell was rung, the next housekeeping does: %s", error)

    def broken(self) -> None:
        """End the process, for the supervisor to start another; pictures that wait for the store get their time."""
        self.drain.abandon(EXIT_BROKEN)

    def close(self) -> None:
        """Leave in order: no more leases, unfinished jobs back, finished ones stored."""
        self._stop.set()
        if self._spot is not None:
            self._spot.close()
        self.renderer.close()
        self._housekeeper.join()
        try:
            # the pictures since the last beat
            self._beat()
            self._ledger.sign_off(self.settings.model, self.worker)
        except UnavailableError as error:
            log.warning("could not sign off: %s", error)
        ended = self.renderer.metrics.images()
        # the last scrape came before the last picture: what nobody scraped is told here
        log.info("the worker ends: %s", ", ".join(f"{n} {what}" for what, n in ended.items()), extra={"images": ended})
        if self._metrics_server is not None:
            self._metrics_server.close()

    def _beat(self) -> int:
        """Say that the worker lives and what it measured; return how many jobs wait."""
        measured = self.renderer.meter.take()
        try:
            return self._ledger.heartbeat(self.settings.model, self.worker, measured, about=self._about)
        except UnavailableError:
            self.renderer.meter.add(**measured)
            self.renderer.metrics.retry("beat")
            raise

    def _tell_ends(self) -> None:
        """Send the webhooks of batches that have ended, whichever worker finds them due."""
        while not self._stop.wait(self.settings.housekeeping_interval_s):
            try:
                deliver_due(self._ledger, self.settings)
            except UnavailableError as error:
                log.warning("webhooks are put off: %s", error)
            except Exception:
                log.exception("webhooks failed; the next round comes")

    def _keep_house(self) -> None:
        while True:
            try:
                waiting = self._beat()
                swept = self._ledger.expire_leases()
                if swept > 0:
                    log.warning("%d leases had run out; their jobs run again", swept)
                doorbell.ring(self._ledger.redis, self._app, self.settings.model, waiting + max(swept, 0))
                flush_full_parts(self._ledger, self._bucket)
                discard_leftovers(self._ledger, self._bucket, age_s=2 * self.settings.lease_ttl_s)
            except UnavailableError as error:
                log.warning("housekeeping is put off: %s", error)
            except SchemaError as error:
                log.critical("leaving: %s", error)
                _leave()
            except Exception:
                log.exception("housekeeping failed; the next round comes")
            if self._stop.wait(self.settings.housekeeping_interval_s):
                return

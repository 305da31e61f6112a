"""A worker process: the loaded model, the render loop and the threads around them, for the life of the process."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
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
from latentfarm.storage.bucket_check import check_bucket
from latentfarm.storage.orphans import collect_due
from latentfarm.storage.results import flush_due
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
from latentfarm_worker.supervise.exit_codes import EXIT_RESTART
from latentfarm_worker.supervise.shared_state import Phase, SharedState
from latentfarm_worker.supervise.watchdog import start_self_watchdog

log = logging.getLogger(__name__)


def _terminate() -> None:
    """Send SIGTERM to this process, so that every shutdown takes the same path."""
    os.kill(os.getpid(), signal.SIGTERM)


class Worker(WorkerHooks):
    """The render loop, its shutdown, and the threads for housekeeping, webhooks and spot notices.

    Args:
        settings: the settings of the farm and the worker.
        app: the Celery app that rings the doorbell.
        state: progress that the supervisor and the watchdog read.
        name: name of the worker in the ledger; a supervisor gives every restarted process the same.
        supervised: a supervisor watches for stalls; otherwise the process watches itself.

    Raises:
        LatentfarmError: The settings, the bucket, the ledger or the model cannot be used.
    """

    def __init__(self, settings: Settings, app: Celery, *, state: SharedState, name: str, supervised: bool) -> None:
        settings.require()
        super().__init__(state)
        # a supervisor sends SIGUSR2 before it kills a stalled process; the handler prints all stacks and takes no lock
        faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
        self._settings = settings
        self._app = app
        self._name = name
        self._metrics = Metrics(settings.model)
        self._health = Health(state, stall_timeout_s=settings.stall_timeout_s)
        self._metrics_server = self._start_metrics_server()
        self._ledger = Ledger.connect(settings.redis_url)
        self._bucket = Bucket.connect(settings)
        self._check_stores()
        self.render_loop = self._make_render_loop()
        if not supervised:
            start_self_watchdog(state, settings.stall_timeout_s)
        self.shutdown = Shutdown(self.render_loop, timeout_s=settings.shutdown_timeout_s)
        self._spot_watch = self._start_spot_watch()
        self._stop = Event()
        self._housekeeper = Thread(target=self._housekeeping_loop, name="housekeeping", daemon=True)
        self._housekeeper.start()
        # a thread of its own, because a slow endpoint would delay the heartbeats
        Thread(target=self._webhook_loop, name="webhooks", daemon=True).start()
        state.enter(Phase.IDLE)
        self._health.renderer = self.render_loop
        place = f"{self._info['device']}, {self._info['slots']} slots, process {os.getpid()}"
        log.info("worker %s serves %s on %s", name, settings.model, place)

    # -- start -----------------------------------------------------------------------------------------------

    def _start_metrics_server(self) -> MetricsServer | None:
        address, registry = self._settings.metrics_address, self._metrics.registry
        return MetricsServer(address, registry, live=self._health.live, ready=self._health.ready) if address else None

    def _check_stores(self) -> None:
        """Refuse an unusable bucket or a ledger of another schema before the model is loaded, which is slow."""
        check_bucket(self._bucket)
        with suppress(UnavailableError):
            # if Redis is unavailable now, the render loop waits for it
            self._ledger.count_pending(self._settings.model)

    def _make_render_loop(self) -> RenderLoop:
        settings = self._settings
        family = load_model(settings)
        previews = PreviewRecorder(family)
        engine = make_engine(family, settings, on_step=previews)
        engine.warm_up()
        render_loop = RenderLoop(
            ledger=self._ledger,
            bucket=self._bucket,
            engine=engine,
            previews=previews,
            model=settings.model,
            worker=self._name,
            lease_ttl_s=settings.lease_ttl_s,
            embed_metadata=settings.embed_metadata,
            hooks=self,
            metrics=self._metrics,
        )
        self._info: dict[str, str | int] = {
            "device": family.device.type,
            "device_name": device_name(family.device),
            "dtype": str(family.dtype).removeprefix("torch."),
            "slots": engine.slots,
        }
        self._register_gauges(render_loop, engine)
        return render_loop

    def _register_gauges(self, render_loop: RenderLoop, engine: Engine) -> None:
        self._metrics.watch(
            {
                "slots": ("Guided images that fit the engine's batch.", lambda: engine.slots),
                "slots_busy": ("Slots in use; an image without guidance uses half a slot.", lambda: engine.slots_taken),
                "leases_held": ("Jobs that this worker has leased.", lambda: render_loop.leases_held),
                "upload_backlog": ("Finished images that are not committed yet.", lambda: render_loop.backlog),
                "ready": ("1 if the worker leases jobs.", lambda: not self._health.ready()),
            },
            {"worker": self._name, "device": str(self._info["device"]), "dtype": str(self._info["dtype"])},
        )
        device = engine.family.device
        if device.type == "cuda":
            self._metrics.watch_memory(
                lambda: {
                    "allocated": torch.cuda.memory_allocated(device),
                    "reserved": torch.cuda.memory_reserved(device),
                    "total": torch.cuda.get_device_properties(device).total_memory,
                }
            )

    def _start_spot_watch(self) -> SpotWatch | None:
        if self._settings.spot_provider != "aws":
            return None
        return SpotWatch(InstanceMetadata(self._settings.metadata_url), _terminate)

    # -- hooks -----------------------------------------------------------------------------------------------

    def notify_workers(self) -> None:
        """Ring for released jobs: the doorbells that announced them are used up."""
        model = self._settings.model
        try:
            doorbell.ring(self._ledger.redis, self._app, model, self._ledger.count_pending(model))
        except UnavailableError as error:
            log.warning("the doorbell was not rung, the next housekeeping rings it: %s", error)

    def on_device_lost(self) -> None:
        """End the process, so that the supervisor starts another; images that wait for the bucket are stored first."""
        self.shutdown.begin_failed(EXIT_RESTART)

    # -- threads ---------------------------------------------------------------------------------------------

    def _heartbeat(self) -> int:
        """Report that the worker lives, and its new measurements; return the number of pending jobs."""
        model = self._settings.model
        try:
            return self._metrics.report(
                lambda measured: self._ledger.heartbeat(model, self._name, measured, about=self._info)
            )
        except UnavailableError as error:
            self._metrics.retry("heartbeat", error)
            raise

    def _housekeeping_loop(self) -> None:
        while True:
            try:
                self._do_housekeeping()
            except UnavailableError as error:
                log.warning("housekeeping is postponed: %s", error)
            except SchemaError as error:
                log.critical("exiting: %s", error)
                _terminate()
            except Exception:
                log.exception("housekeeping failed and is repeated in the next round")
            if self._stop.wait(self._settings.housekeeping_interval_s):
                return

    def _do_housekeeping(self) -> None:
        """Report to the ledger, and do the farm's upkeep that any worker can do."""
        pending = self._heartbeat()
        expired = self._ledger.expire_leases()
        if expired > 0:
            log.warning("%d leases expired; their jobs run again", expired)
        doorbell.ring(self._ledger.redis, self._app, self._settings.model, pending + max(expired, 0))
        flush_due(self._ledger, self._bucket)
        collect_due(self._ledger, self._bucket, delay_s=2 * self._settings.lease_ttl_s)

    def _webhook_loop(self) -> None:
        """Send the due webhooks of all batches."""
        while not self._stop.wait(self._settings.housekeeping_interval_s):
            try:
                deliver_due(self._ledger, self._settings)
            except UnavailableError as error:
                log.warning("webhooks are postponed: %s", error)
            except Exception:
                log.exception("webhooks failed and are repeated in the next round")

    # -- end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Lease no more, release unfinished jobs, store finished images, and sign off from the ledger."""
        self._stop.set()
        if self._spot_watch is not None:
            self._spot_watch.close()
        self.render_loop.close()
        self._housekeeper.join()
        try:
            # report the images since the last heartbeat
            self._heartbeat()
            self._ledger.sign_off(self._settings.model, self._name)
        except UnavailableError as error:
            log.warning("could not sign off: %s", error)
        images = self._metrics.images()
        # the images since the last scrape are in no time series, so they are logged
        summary = ", ".join(f"{count} {outcome}" for outcome, count in images.items())
        log.info("the worker ends: %s", summary, extra={"images": images})
        if self._metrics_server is not None:
            self._metrics_server.close()

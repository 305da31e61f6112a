"""A worker process: the loaded model, the render loop and the threads around them, for the life of the process."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
from contextlib import suppress
from threading import Event

import torch
from celery import Celery

from latentfarm import doorbell
from latentfarm.errors import SchemaError, UnavailableError
from latentfarm.ledger import Ledger
from latentfarm.monitoring.http_server import MetricsServer
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.bucket_check import check_bucket
from latentfarm.webhooks.deliver import deliver_due
from latentfarm_worker.build import load_model, make_engine
from latentfarm_worker.calibration.cache import device_name
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models.facts import facts_of
from latentfarm_worker.service.health import Health
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.maintenance import Maintenance
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.predecessor import end_predecessor
from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.service.shutdown import Shutdown
from latentfarm_worker.service.spot import InstanceMetadata, SpotWatch
from latentfarm_worker.service.threads import Threads
from latentfarm_worker.supervise.exit_codes import EXIT_RESTART
from latentfarm_worker.supervise.shared_state import Phase, SharedState
from latentfarm_worker.supervise.watchdog import POLL_S, Watchdog, exit_if_stalled

log = logging.getLogger(__name__)

#: seconds to wait at the end for a heartbeat that hangs
_CLOSE_S = 5.0
#: seconds after which a wait for an interactive job counts as success of its thread, or its failures would stay
_IDLE_S = 5.0


def _terminate() -> None:
    """Send SIGTERM to this process, so that every shutdown takes the same path."""
    os.kill(os.getpid(), signal.SIGTERM)


class Worker(WorkerHooks):
    """The render loop, its shutdown, and the threads for heartbeats, maintenance, webhooks and spot notices.

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
        #: set by an interactive job
        self._urgent = Event()
        self._metrics = Metrics(settings.model)
        self.threads = Threads(self._metrics)
        self._health = Health(state, self.threads, stall_timeout_s=settings.stall_timeout_s)
        self._metrics_server = self._start_metrics_server()
        self._ledger = Ledger.connect(settings.redis_url)
        self._bucket = Bucket.connect(settings)
        self._check_stores()
        self.render_loop = self._make_render_loop()
        # again, in case Redis was unavailable: before anything is leased in the same name
        end_predecessor(self._ledger, state, name, patience_s=settings.lease_ttl_s)
        self._maintenance = Maintenance(
            ledger=self._ledger,
            bucket=self._bucket,
            threads=self.threads,
            metrics=self._metrics,
            interval_s=settings.housekeeping_interval_s,
            orphans_after_s=2 * settings.lease_ttl_s,
        )
        self.shutdown = Shutdown(self.render_loop, threads=self.threads, timeout_s=settings.shutdown_timeout_s)
        self._spot_watch = self._start_spot_watch()
        interval_s = settings.housekeeping_interval_s
        self._heartbeats = self.threads.loop("heartbeat", self._do_housekeeping, interval_s=interval_s)
        # a doorbell is heard a second late at worst: kombu listens again when its event loop turns
        self._interactive = self.threads.loop("interactive", self._render_urgent, interval_s=0)
        # a thread of its own, because a slow endpoint would delay the heartbeats
        self._webhooks = self.threads.loop("webhooks", self._send_webhooks, interval_s=interval_s)
        if not supervised:
            watchdog = Watchdog(state, settings.stall_timeout_s)
            self.threads.loop("watchdog", lambda: exit_if_stalled(watchdog), interval_s=POLL_S)
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
        end_predecessor(self._ledger, self.state, self._name)

    def _make_render_loop(self) -> RenderLoop:
        settings = self._settings
        family = load_model(settings)
        engine = make_engine(family, settings)
        engine.warm_up()
        render_loop = RenderLoop(
            ledger=self._ledger,
            bucket=self._bucket,
            engine=engine,
            model=settings.model,
            worker=self._name,
            lease_ttl_s=settings.lease_ttl_s,
            embed_metadata=settings.embed_metadata,
            hooks=self,
            metrics=self._metrics,
            threads=self.threads,
        )
        self._info: dict[str, str | int] = {
            "device": family.device.type,
            "device_name": device_name(family.device),
            "dtype": str(family.dtype).removeprefix("torch."),
            "slots": engine.slots,
            "facts": facts_of(family).model_dump_json(),
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
        return SpotWatch(InstanceMetadata(self._settings.metadata_url), _terminate, threads=self.threads)

    # -- hooks -----------------------------------------------------------------------------------------------

    def notify_workers(self) -> None:
        """Ring for released jobs: the doorbells that announced them are used up."""
        model = self._settings.model
        try:
            doorbell.ring(self._ledger.redis, self._app, model, self._ledger.count_pending(model))
        except UnavailableError as error:
            log.warning("the doorbell was not rung, the next housekeeping rings it: %s", error)
        except Exception:
            # the caller has jobs to release on the way out
            log.exception("the doorbell was not rung, the next housekeeping rings it")

    def on_device_lost(self) -> None:
        """End the process, so that the supervisor starts another; images that wait for the bucket are stored first."""
        self.shutdown.begin_failed(EXIT_RESTART)

    def on_urgent(self) -> None:
        """Render without a doorbell."""
        self._urgent.set()

    def on_full_part(self) -> None:
        """Store the part's results."""
        self._maintenance.flush()

    def delete_objects(self, keys: list[str]) -> None:
        """Delete images of a batch that is deleted."""
        self._maintenance.delete(keys)

    # -- threads ---------------------------------------------------------------------------------------------

    def _heartbeat(self) -> None:
        """Report that the worker lives, and its new measurements."""
        model = self._settings.model
        about = {**self._info, "draining": int(self.render_loop.draining)}
        try:
            reply = self._metrics.report(
                lambda measured: self._ledger.heartbeat(model, self._name, measured, about=about)
            )
        except UnavailableError as error:
            self._metrics.retry("heartbeat", error)
            raise
        if reply.drain and not self.render_loop.draining:
            log.info("a drain is requested")
            _terminate()

    def _do_housekeeping(self) -> None:
        """Report to the ledger, and do the farm's upkeep in Redis that any worker can do."""
        try:
            expired = self._beat_and_sweep()
        except SchemaError as error:
            log.critical("exiting: %s", error)
            self.shutdown.begin_failed(error.exit_code)
            return
        if expired > 0:
            log.warning("%d leases expired; their jobs run again", expired)
        if expired >= 0:
            # only who swept rings, for all models: if every worker did, each would find the same messages missing
            for model, jobs in self._ledger.pending_jobs().items():
                doorbell.ring(self._ledger.redis, self._app, model, jobs)

    def _beat_and_sweep(self) -> int:
        """Return the number of expired leases, -1 if another worker sweeps now."""
        try:
            self._heartbeat()
        finally:
            # also if the heartbeat failed: the leases of dead workers must not wait for it
            expired = self._ledger.expire_leases()
        return expired

    def _render_urgent(self) -> None:
        """Wait for an interactive job, and render all jobs. While a doorbell does so, this finds none left after it."""
        if self._urgent.wait(_IDLE_S):
            self._urgent.clear()
            self.render_loop.render_all()

    def _send_webhooks(self) -> None:
        """Send the due webhooks of all batches."""
        deliver_due(self._ledger, self._settings)

    # -- end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Lease no more, release unfinished jobs, store finished images, and sign off from the ledger."""
        if self._spot_watch is not None:
            self._spot_watch.close()
        self.render_loop.close()
        self._interactive.stop()
        self._urgent.set()
        self._heartbeats.stop(_CLOSE_S)
        self._webhooks.stop()
        self._maintenance.close()
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

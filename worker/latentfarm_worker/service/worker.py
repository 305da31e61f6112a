"""A worker process: its models, their render loops and the threads around them, for the life of the process."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
from collections import Counter
from contextlib import suppress
from functools import partial
from threading import Event

from celery import Celery

from latentfarm import doorbell
from latentfarm.errors import SchemaError, UnavailableError
from latentfarm.ledger import Ledger
from latentfarm.model_spec import served_models
from latentfarm.monitoring.http_server import MetricsServer
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.bucket_check import check_bucket
from latentfarm.webhooks.deliver import deliver_due
from latentfarm_worker.build import load_model, make_engine, pick_device
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.model_pool import ModelPool, weights_budget
from latentfarm_worker.scoring.scorers import load_scorers
from latentfarm_worker.service.health import Health
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.maintenance import Maintenance
from latentfarm_worker.service.predecessor import end_predecessor
from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.service.render_loops import RenderLoops
from latentfarm_worker.service.served_model import ServedModel
from latentfarm_worker.service.shutdown import Shutdown
from latentfarm_worker.service.spot import InstanceMetadata, SpotWatch
from latentfarm_worker.service.turns import Turn, Turns
from latentfarm_worker.supervise.exit_codes import EXIT_RESTART
from latentfarm_worker.supervise.shared_state import Phase, SharedState
from latentfarm_worker.supervise.watchdog import POLL_S, Watchdog, exit_if_stalled

log = logging.getLogger(__name__)

#: seconds to wait at the end for a heartbeat that hangs
_CLOSE_S = 5.0
#: seconds after which a wait for an urgent job counts as success of its thread, or its failures would stay
_IDLE_S = 5.0


def _free_device(engine: Engine) -> None:
    """Drop what holds addresses of the weights of a model that has left the device, and let its adapters leave too."""
    engine.forget_graphs()
    engine.family.adapter_modules.leave_device()


def _terminate() -> None:
    """Send SIGTERM to this process, so that every shutdown takes the same path."""
    os.kill(os.getpid(), signal.SIGTERM)


class _ModelHooks(WorkerHooks):
    """The callbacks of one model's render loop to its worker."""

    def __init__(self, worker: Worker, model: str) -> None:
        super().__init__(worker.state)
        self._worker = worker
        self._model = model

    def notify_workers(self) -> None:
        self._worker.notify_workers(self._model)

    def on_device_lost(self) -> None:
        self._worker.on_device_lost()

    def on_urgent(self) -> None:
        self._worker.announce_urgent(self._model)

    def on_full_part(self) -> None:
        self._worker.on_full_part()

    def delete_objects(self, keys: list[str]) -> None:
        self._worker.delete_objects(keys)

    def before_step(self, turn: Turn | None) -> None:
        self._worker.use_weights(self._model, turn)


def _models_of(settings: Settings, name: str) -> list[ServedModel]:
    """Return the models that a worker of this name serves; with one the name is its own."""
    specs = served_models(settings)
    models: list[ServedModel] = []
    for spec in specs:
        own = settings.model_copy(update={"model": spec.alias, "model_source": spec.source})
        in_ledger = f"{name}.{spec.alias}" if len(specs) > 1 else name
        models.append(ServedModel(own, in_ledger, beside=models[0] if models else None))
    return models


class Worker:
    """The render loops of its models, their shutdown, and the threads for heartbeats, maintenance and webhooks.

    Args:
        settings: the settings of the farm and the worker.
        app: the Celery app that rings the doorbell.
        state: progress that the supervisor and the watchdog read.
        name: name of the worker in the ledger; a supervisor gives every restarted process the same.
        supervised: a supervisor watches for stalls; otherwise the process watches itself.

    Raises:
        LatentfarmError: The settings, the bucket, the ledger or a model cannot be used.
    """

    def __init__(self, settings: Settings, app: Celery, *, state: SharedState, name: str, supervised: bool) -> None:
        settings.require()
        # a supervisor sends SIGUSR2 before it kills a stalled process; the handler prints all stacks and takes no lock
        faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
        self.state = state
        self._settings = settings
        self._app = app
        self._name = name
        #: set by an urgent job
        self._urgent = Event()
        self._models = _models_of(settings, name)
        self._metrics, self.threads = self._models[0].metrics, self._models[0].threads
        self._turns = Turns([model.alias for model in self._models], turn_s=settings.model_turn_s)
        #: None if one model is always on the device
        self._pool: ModelPool | None = None
        self._health = Health(state, self.threads, stall_timeout_s=settings.stall_timeout_s)
        self._metrics_server = self._start_metrics_server()
        self._ledger = Ledger.connect(settings.redis_url)
        self._bucket = Bucket.connect(settings)
        self._check_stores()
        self._load_models()
        self.render_loops = self._make_render_loops()
        # again, in case Redis was unavailable: before anything is leased in the same name
        names = [model.name for model in self._models]
        end_predecessor(self._ledger, state, *names, patience_s=settings.lease_ttl_s)
        self._maintenance = Maintenance(
            ledger=self._ledger,
            bucket=self._bucket,
            threads=self.threads,
            metrics=self._metrics,
            interval_s=settings.housekeeping_interval_s,
            orphans_after_s=2 * settings.lease_ttl_s,
        )
        self.shutdown = Shutdown(self.render_loops, threads=self.threads, timeout_s=settings.shutdown_timeout_s)
        self._spot_watch = self._start_spot_watch()
        self._start_threads(supervised=supervised)
        state.enter(Phase.IDLE)
        self._health.renderer = self.render_loops
        slots = ", ".join(str(model.info["slots"]) for model in self._models)
        place = f"{self._models[0].info['device']}, {slots} slots, process {os.getpid()}"
        log.info("worker %s serves %s on %s", name, ", ".join(model.alias for model in self._models), place)

    @property
    def render_loop(self) -> RenderLoop:
        """The render loop of the first model."""
        return self._models[0].render_loop

    # -- start -----------------------------------------------------------------------------------------------

    def _start_metrics_server(self) -> MetricsServer | None:
        address, registry = self._settings.metrics_address, self._metrics.registry
        return MetricsServer(address, registry, live=self._health.live, ready=self._health.ready) if address else None

    def _check_stores(self) -> None:
        """Refuse an unusable bucket or a ledger of another schema before the model is loaded, which is slow."""
        check_bucket(self._bucket)
        with suppress(UnavailableError):
            # if Redis is unavailable now, the render loop waits for it
            self._ledger.count_pending(self._models[0].alias)
        end_predecessor(self._ledger, self.state, *(model.name for model in self._models))

    def _load_models(self) -> None:
        """Load every model once, so that one that cannot be used is an error at the start; the first one last."""
        scorers = load_scorers(self._settings)
        if len(self._models) > 1:
            self._pool = ModelPool(weights_budget(pick_device(), self._settings.model_memory_gb))
        for model in reversed(self._models):
            if self._pool is None:
                family = load_model(model.settings)
            else:
                family = self._pool.add(model.alias, partial(load_model, model.settings))
            engine = make_engine(family, model.settings)
            engine.warm_up()
            model.take_engine(engine, scorers)
            if self._pool is not None:
                self._pool.when_leaving(model.alias, partial(_free_device, engine))
        self._models[0].watch_memory()

    def _make_render_loops(self) -> RenderLoops:
        for model in self._models:
            hooks = _ModelHooks(self, model.alias)
            model.start(self._ledger, self._bucket, hooks, ready=lambda: not self._health.ready())
        return RenderLoops({model.alias: model.render_loop for model in self._models}, self._turns)

    def _start_threads(self, *, supervised: bool) -> None:
        interval_s = self._settings.housekeeping_interval_s
        self._heartbeats = self.threads.loop("heartbeat", self._do_housekeeping, interval_s=interval_s)
        # a doorbell is heard a second late at worst: kombu listens again when its event loop turns
        self._urgent_loop = self.threads.loop("urgent", self._render_urgent, interval_s=0)
        # a thread of its own, because a slow endpoint would delay the heartbeats
        self._webhooks = self.threads.loop("webhooks", self._send_webhooks, interval_s=interval_s)
        if not supervised:
            watchdog = Watchdog(self.state, self._settings.stall_timeout_s)
            self.threads.loop("watchdog", lambda: exit_if_stalled(watchdog), interval_s=POLL_S)

    def _start_spot_watch(self) -> SpotWatch | None:
        if self._settings.spot_provider != "aws":
            return None
        return SpotWatch(InstanceMetadata(self._settings.metadata_url), _terminate, threads=self.threads)

    # -- what the render loops call --------------------------------------------------------------------------

    def notify_workers(self, model: str) -> None:
        """Ring for released jobs of a model: the doorbells that announced them are used up."""
        try:
            doorbell.ring(self._ledger.redis, self._app, model, self._ledger.count_pending(model))
        except UnavailableError as error:
            log.warning("the doorbell was not rung, the next housekeeping rings it: %s", error)
        except Exception:
            # the caller has jobs to release on the way out
            log.exception("the doorbell was not rung, the next housekeeping rings it")

    def on_device_lost(self) -> None:
        """End the process, so that the supervisor starts another; images that wait for the bucket are stored first."""
        self.render_loops.abandon_device()
        self.shutdown.begin_failed(EXIT_RESTART)

    def on_urgent(self) -> None:
        """Render without a doorbell."""
        self._urgent.set()

    def announce_urgent(self, model: str) -> None:
        """Give a model the next turn: it has an urgent job."""
        self._turns.on_urgent(model)
        self.on_urgent()

    def on_full_part(self) -> None:
        """Store the part's results."""
        self._maintenance.flush()

    def delete_objects(self, keys: list[str]) -> None:
        """Delete images of a batch that is deleted."""
        self._maintenance.delete(keys)

    def use_weights(self, model: str, turn: Turn | None) -> None:
        """Have a model's weights on the device."""
        if self._pool is not None and turn is not None:
            turn.extend(self._pool.use(model))

    # -- threads ---------------------------------------------------------------------------------------------

    def _heartbeat(self) -> None:
        """Report that the worker lives, and its new measurements."""
        drain = False
        for model in self._models:
            try:
                reply = model.heartbeat(self._ledger)
            except UnavailableError as error:
                model.metrics.retry("heartbeat", error)
                raise
            self._turns.on_pending(model.alias, reply.pending)
            drain = drain or reply.drain
        if drain and not self.render_loops.draining:
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
        """Wait for an urgent job, and render all jobs. While a doorbell does so, this finds none left after it."""
        if self._urgent.wait(_IDLE_S):
            self._urgent.clear()
            self.render_loops.render_all()

    def _send_webhooks(self) -> None:
        """Send the due webhooks of all batches."""
        deliver_due(self._ledger, self._settings)

    # -- end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Lease no more, release unfinished jobs, store finished images, and sign off from the ledger."""
        if self._spot_watch is not None:
            self._spot_watch.close()
        self.render_loops.close()
        self._urgent_loop.stop()
        self._urgent.set()
        self._heartbeats.stop(_CLOSE_S)
        self._webhooks.stop()
        self._maintenance.close()
        try:
            # report the images since the last heartbeat
            self._heartbeat()
            for model in self._models:
                self._ledger.sign_off(model.alias, model.name)
        except UnavailableError as error:
            log.warning("could not sign off: %s", error)
        images = sum((Counter(model.metrics.images()) for model in self._models), start=Counter())
        # the images since the last scrape are in no time series, so they are logged
        summary = ", ".join(f"{count} {outcome}" for outcome, count in images.items())
        log.info("the worker ends: %s", summary, extra={"images": images})
        if self._metrics_server is not None:
            self._metrics_server.close()

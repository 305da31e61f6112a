"""``render``: from a prompt file to images in one command."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from latentfarm.batch import Batch
from latentfarm.cli import options
from latentfarm.cli.model_options import Base, Revision, Vae, Variant, with_model_options
from latentfarm.cli.options import check_dtype
from latentfarm.cli.output import echo_err, echo_notes, print_json
from latentfarm.cli.prompt_options import Rows, input_policy, prompt_options, source_client
from latentfarm.cli.shared import check_folder, fail_if, fetch_into, wait_for, write_contact_sheet
from latentfarm.errors import UnavailableError
from latentfarm.farm import Farm
from latentfarm.farm_folder import FarmRunsError, explain_outage
from latentfarm.fetch import FetchReport
from latentfarm.local.farm import LocalFarm, require_worker_packages, start_workers, stop_all, worker_exit_s
from latentfarm.local.process import ManagedProcess
from latentfarm.model_spec import ModelSpec, parse_model
from latentfarm.names import DEFAULT_MODEL, check_batch_name
from latentfarm.settings import LOCAL_FOLDER, Settings
from latentfarm.submission.request import Request, SubmitOptions
from latentfarm.submission.validation import make_valid_request, validate


@prompt_options
def render(
    file: options.PromptFile,
    output: options.OutputFolder,
    rows: Rows,
    batch: options.NewBatch = None,
    model: options.RenderModel = DEFAULT_MODEL,
    base: Base = None,
    vae: Vae = None,
    variant: Variant = None,
    revision: Revision = None,
    dtype: options.Dtype = None,
    slots: options.Slots = None,
    workers: options.Workers = 1,
    priority: options.Priority = 0,
    preempt: options.Preempt = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Render a prompt file into a folder: submit, wait and fetch.

    It starts Redis, an S3 server and workers if none are running, and stops at the end what it started. A repeated
    command continues and renders nothing twice.

    Example: `latentfarm render prompts.txt -o out --num-inference-steps 30`
    """
    [spec] = with_model_options([parse_model(model)], base=base, vae=vae, variant=variant, revision=revision)
    rules = SubmitOptions(priority=priority, preempt=preempt)
    settings = Settings.load()
    # validated before any process starts, so that an invalid row or option is reported at once
    request = make_valid_request(
        file,
        rules,
        reading=rows.reading,
        client=source_client(settings),
        inputs=input_policy(settings, file),
        model=spec.alias,
        expansion=rows.expansion,
        **rows.defaults,
    )
    name = request.name if batch is None else check_batch_name(batch)
    check_folder(output, name, request, force=force)
    with _farm_with_workers(spec, workers, dtype=check_dtype(dtype), slots=slots or 0) as (farm, pool):
        request = _with_facts(request, name, rules, farm, pool)
        found = farm.enqueue(request, rules, batch=name)
        echo_notes(found.notes)
        if not found.status().is_final:
            pool.start()
        status = wait_for(found, meanwhile=pool.require_alive, starting=pool.has_started)
        # the previews of drafts, until `finish` and this command again replace them by images
        fetched = fetch_into(found, output, drafts=bool(status.drafted), force=force)
        write_contact_sheet(fetched)
        if as_json:
            print_json(_summary(found, fetched))
    fail_if(not status.succeeded)


#: seconds in which another command starts its servers, or stops its workers
_START_S = 60.0
#: seconds between checks of the disk
_CHECK_S = 2.0
_ENDING_S = 0.2
#: seconds between two queries for what a worker announces once its model is loaded
_LOOK_S = 0.05


class _WorkerPool:
    """The workers that this command starts if no other worker serves the model."""

    def __init__(
        self,
        start: Callable[[], list[ManagedProcess]],
        *,
        others_serve: Callable[[], bool],
        require_servers: Callable[[], None],
    ) -> None:
        self._start = start
        self._require_servers = require_servers
        self._checked = time.monotonic()
        self._others_serve = others_serve
        self._workers: list[ManagedProcess] = []

    def start(self) -> None:
        """Start the workers unless they run, or another one serves the model."""
        if not self._workers and not self._others_serve():
            echo_err("loading the model ...")
            self._workers = self._start()

    def has_started(self) -> bool:
        """Return whether this command has started workers."""
        return bool(self._workers)

    def require_alive(self) -> None:
        """Check the farm while its jobs run.

        Raises:
            UnavailableError: a worker has exited, whose supervisor has stopped restarting it; or so has a server of
                this folder, or its disk is full.
        """
        for worker in self._workers:
            worker.require_alive()
        self._require_servers()
        if time.monotonic() - self._checked > _CHECK_S:
            self._checked = time.monotonic()
            if outage := explain_outage():
                raise UnavailableError(outage)


def _with_facts(request: Request, batch: str, rules: SubmitOptions, farm: Farm, pool: _WorkerPool) -> Request:
    """Return the request with what is known of its model. A new worker announces it as soon as the model is loaded.

    So the first batch of a model has the model's own steps and guidance, too.

    Raises:
        InvalidRowsError: rows do not fit the model.
        InputError: an option does not.
        UnavailableError: the worker cannot load the model.
    """
    if farm.ledger.batch_summaries([batch]):
        # its facts are known, and it may be complete
        return request
    facts = farm.ledger.model_facts(request.model)
    if facts is None:
        pool.start()
        while pool.has_started() and facts is None:
            pool.require_alive()
            time.sleep(_LOOK_S)
            facts = farm.ledger.model_facts(request.model)
    request = request.with_facts(facts)
    if facts is not None:
        validate(request, rules)
    return request


@contextmanager
def _farm_with_workers(spec: ModelSpec, count: int, *, dtype: str, slots: int) -> Iterator[tuple[Farm, _WorkerPool]]:
    """Yield the farm of the settings, else a local one. At the end, stop every process that was started.

    A local farm that other commands use by then is stopped after them.
    """
    settings, local = Settings.load(use=True), None
    children: list[ManagedProcess] = []
    arguments: dict[str, Any] = {"dtype": dtype, "slots": slots}
    with ExitStack() as cleanup:
        if not settings.configured:
            require_worker_packages()
            settings, local = _local_farm(cleanup)
        farm = Farm.open(settings)

        def start() -> list[ManagedProcess]:
            require_worker_packages()
            # registered first, so that Ctrl-C between two starts stops the first one too
            cleanup.callback(stop_all, children, worker_exit_s(settings))
            start_workers(settings, count, [spec], folder=LOCAL_FOLDER / "logs", into=children, **arguments)
            return children

        try:
            yield (
                farm,
                _WorkerPool(
                    start,
                    # in a farm that begins, the ledger may still list the workers of one that was killed
                    others_serve=lambda: local is None and _is_served(farm, spec.alias),
                    require_servers=local.require_servers if local else lambda: None,
                ),
            )
        except UnavailableError as error:
            # looked for now, because nothing runs after the clean-up
            if local is not None:
                # a process that is killed closes its sockets a moment before it has ended
                time.sleep(_ENDING_S)
                local.require_servers()
            raise UnavailableError(explain_outage() or str(error)) from error
        finally:
            if local is not None:
                # also after Ctrl-C, which ends this command's batch; the second one ends the farm
                local.wait_for_users(_report_users)


def _is_served(farm: Farm, model: str) -> bool:
    return any(not worker.draining for worker in farm.ledger.worker_records(model))


def _local_farm(cleanup: ExitStack) -> tuple[Settings, LocalFarm | None]:
    """Start a local farm, or find the one that another command starts at this moment."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            # for up to a second, it waits for the other to end
            local = cleanup.enter_context(LocalFarm(LOCAL_FOLDER))
        except FarmRunsError:
            settings = Settings.load(use=True)
            if settings.configured:
                return settings, None
            if time.monotonic() > deadline:
                raise
        else:
            return local.settings, local


def _report_users() -> None:
    sys.stdout.flush()
    echo_err("other commands use this farm; it runs until they have ended (Ctrl-C stops it)")


def _summary(batch: Batch, fetched: FetchReport) -> dict[str, Any]:
    return {
        "batch": batch.name,
        "directory": str(fetched.directory),
        "total": fetched.jobs,
        "done": fetched.states["done"],
        "failed": fetched.states["failed"],
        "cancelled": fetched.states["cancelled"],
        "downloaded": fetched.downloaded,
        "results": str(fetched.results),
    }

"""``render``: the whole way in one command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import typer

from latentfarm.batch import Batch
from latentfarm.cli import options
from latentfarm.cli.fetch import fetch_into
from latentfarm.cli.options import check_dtype, print_json
from latentfarm.cli.progress import echo_err
from latentfarm.cli.shared import fail_if, wait_for
from latentfarm.farm import Farm
from latentfarm.fetch import FetchReport
from latentfarm.fetch.contact_sheet import contact_sheet
from latentfarm.local.farm import LocalFarm, end_all, require_worker_packages, start_workers, worker_end_s
from latentfarm.local.process import ManagedProcess
from latentfarm.model_spec import ModelSpec, parse_model
from latentfarm.settings import DEFAULT_MODEL, LOCAL_FOLDER, Settings
from latentfarm.submission.request import SubmitOptions, make_request
from latentfarm.submission.validation import validate

CONTACT_SHEET = "contact-sheet.png"


@options.prompt_options
def render(
    file: options.PromptFile,
    output: options.OutputFolder,
    rows: options.Rows,
    batch: options.NewBatch = None,
    model: options.RenderModel = DEFAULT_MODEL,
    dtype: options.Dtype = None,
    slots: options.Slots = None,
    workers: options.Workers = 1,
    priority: options.Priority = 0,
    as_json: options.Json = False,
) -> None:
    """Render a prompt file into a folder: start what is not running, submit, wait, fetch, stop what was started.

    Run again, it goes on where it stopped and renders nothing twice.

    Example: `latentfarm render prompts.txt -o out --num-inference-steps 30`
    """
    spec = parse_model(model)
    rules = SubmitOptions(priority=priority)
    # before anything is started: a wrong row or option costs no time
    request = make_request(
        file,
        rows.reading,
        client=options.source_client(Settings.load()),
        model=spec.alias,
        expansion=rows.expansion,
        **rows.defaults,
    )
    validate(request, rules)
    with _farm_with_workers(spec, workers, dtype=check_dtype(dtype or "auto"), slots=slots or 0) as (
        farm,
        staff,
    ):
        found = farm.enqueue(request, rules, batch=batch)
        if not found.status().over:
            staff.engage()
        status = wait_for(found, meanwhile=staff.check)
        fetched = fetch_into(found, output)
    write_contact_sheet(fetched)
    if as_json:
        print_json(_summary(found, fetched))
    fail_if(status.failed or not status.complete)


class _Staff:
    """The workers that this command starts, if nobody else serves the model."""

    def __init__(self, start: Callable[[], list[ManagedProcess]], *, others: Callable[[], bool]) -> None:
        self._start = start
        self._others = others
        self._children: list[ManagedProcess] = []

    def engage(self) -> None:
        """Start them, unless somebody works already."""
        if not self._others():
            echo_err("loading the model ...")
            self._children = self._start()

    def check(self) -> None:
        """Raise UnavailableError when one has ended: it would not come back."""
        for child in self._children:
            child.require_alive()


@contextmanager
def _farm_with_workers(spec: ModelSpec, count: int, *, dtype: str, slots: int) -> Iterator[tuple[Farm, _Staff]]:
    """Give the farm that the settings name, else one of our own; in the end stop what was started."""
    settings = Settings.load()
    children: list[ManagedProcess] = []
    arguments: dict[str, Any] = {"dtype": dtype, "slots": slots}
    with ExitStack() as cleanup:
        if not settings.configured:
            require_worker_packages()
            settings = cleanup.enter_context(LocalFarm(LOCAL_FOLDER)).settings
        farm = Farm.open(settings)

        def start() -> list[ManagedProcess]:
            # registered first, so that a Ctrl-C between two starts leaves none behind
            cleanup.callback(end_all, children, worker_end_s(settings))
            start_workers(settings, count, spec, folder=LOCAL_FOLDER / "logs", into=children, **arguments)
            return children

        yield farm, _Staff(start, others=lambda: bool(farm.ledger.workers(spec.alias)))


def write_contact_sheet(fetched: FetchReport) -> None:
    """Draw the first pictures of a fetch beside them."""
    if not fetched.pictures:
        return
    contact_sheet(fetched.pictures).save(fetched.directory / CONTACT_SHEET)
    echo_err(f"contact sheet: {fetched.directory / CONTACT_SHEET}")


def _summary(batch: Batch, fetched: FetchReport) -> dict[str, Any]:
    return {
        "batch": batch.name,
        "directory": str(fetched.directory),
        "total": fetched.jobs,
        "done": fetched.states["done"],
        "failed": fetched.states["failed"],
        "downloaded": fetched.downloaded,
        "results": str(fetched.results),
    }


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(render)

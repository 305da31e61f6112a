"""One worker of two models, with real processes: both batches complete, with the files of workers with one model."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Command, empty, until
from tests.support.leasing import holders
from tests.support.machines import Machine, free_ports
from tests.support.processes import process_of
from tests.support.sibling_models import make_siblings

from latentfarm import Farm
from latentfarm.settings import Settings

pytestmark = pytest.mark.acceptance

ROW = {"width": 64, "height": 64, "num_inference_steps": 4}
#: bytes depend on the rows of a call
CHOSEN = {"slots": 2, "micro_batch": 4}
MODELS = ("first", "second")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return dict(zip(MODELS, make_siblings(tmp_path_factory.mktemp("models")), strict=True))


def render(
    folder: Path, settings: Settings, sources: dict[str, Path], *, kill: bool = False
) -> tuple[dict[str, str], str]:
    """Render a batch with each model on one worker; return the digest of each image, and the worker's log."""
    farm = Farm.open(settings)
    empty(farm)
    options = [text for alias, source in sources.items() for text in ("--model", f"{alias}={source}")]
    machine = Machine.start(folder, settings.model_copy(update=CHOSEN), free_ports(1)[0], "worker", *options)
    digests: dict[str, str] = {}
    try:
        until(lambda: all(farm.ledger.workers(model) for model in sources))
        rows: list[dict[str, Any]] = [{"prompt": f"p{n}", **ROW} for n in range(40 if kill else 5)]
        batches = [farm.submit(rows, batch=f"of-{model}", model=model) for model in sources]
        if kill:
            until(lambda: bool(batches[0].status().done and holders(farm.ledger)))
            os.kill(process_of(min(holders(farm.ledger)).rpartition(".")[0]), signal.SIGKILL)
        for batch in batches:
            status = batch.wait(timeout_s=120)
            assert (status.done, status.failed) == (len(rows), 0)
            lines = list(batch.results())
            assert {line["attempts"] for line in lines} == {1}
            digests |= {f"{batch.name}/{line['index']}": line["sha256"] for line in lines}
    finally:
        machine.child.terminate()
        assert machine.child.wait_or_kill(60) == 0
    return digests, machine.child.log.read_text()


@pytest.mark.slow
def test_two_models_in_one_worker_give_the_files_of_two_workers(
    settings: Settings, sources: dict[str, Path], tmp_path: Path
) -> None:
    # no two models fit
    together, log = render(tmp_path / "both", settings.model_copy(update={"model_memory_gb": 1e-9}), sources)
    assert "serves first, second on cpu" in log
    assert "model second is on the device after" in log
    alone: dict[str, str] = {}
    for alias, source in sources.items():
        alone |= render(tmp_path / alias, settings, {alias: source})[0]
    assert together == alone


@pytest.mark.slow
def test_a_worker_of_two_models_that_is_killed_loses_and_charges_no_job(
    settings: Settings, sources: dict[str, Path], tmp_path: Path
) -> None:
    _, log = render(tmp_path / "killed", settings, sources, kill=True)
    assert "the process before this one died with" in log


def test_two_models_of_one_alias_are_refused(latentfarm: Command, tmp_path: Path) -> None:
    first, second = make_siblings(tmp_path)
    found = latentfarm("up", "--model", f"a={first}", "--model", f"a={second}")
    assert found.returncode == 2
    assert found.stderr == "latentfarm: model 'a' is there twice; give each an alias of its own: ALIAS=SOURCE\n"

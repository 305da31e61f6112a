"""A command that finds that nothing moves prints why, and what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.conftest import Command
from tests.support.leasing import lease
from typer.testing import CliRunner

from latentfarm import Batch, Farm
from latentfarm.cli import app
from latentfarm.cli.waiting import WaitWarnings
from latentfarm.model_facts import ModelFacts
from latentfarm.submission.request import SubmitOptions
from latentfarm.waiting import wait_reasons

pytestmark = pytest.mark.integration

ABOUT: dict[str, str | int] = {"device": "cpu", "device_name": "test", "dtype": "float32", "slots": 1}


def submit(farm: Farm, name: str, model: str, count: int = 3, **rules: Any) -> Batch:
    return farm.submit([f"image {n}" for n in range(count)], batch=name, model=model, options=SubmitOptions(**rules))


def reasons(farm: Farm, batch: Batch, *, starting: bool = False) -> list[str]:
    return wait_reasons(farm.ledger, [batch.status()], starting=starting).get(batch.name, [])


def test_a_model_that_no_worker_serves_is_reported_with_those_that_are_served(farm: Farm) -> None:
    batch = submit(farm, "cats", "sd14")
    assert reasons(farm, batch) == [
        "no worker is running now; start one with `latentfarm worker --model sd14=FOLDER_OR_HUB_ID`; "
        "a worker counts once it has loaded its model"
    ]
    # a command that has started a worker itself only waits for it
    assert reasons(farm, batch, starting=True) == []
    farm.ledger.heartbeat("mini", "w1", about=ABOUT)
    farm.ledger.heartbeat("sd15", "w2", about=ABOUT)
    farm.ledger.heartbeat("sd15", "w3", about=ABOUT)
    assert reasons(farm, batch)[0].startswith(
        "no worker serves 'sd14' now (served: mini by 1, sd15 by 2); start one with"
    )
    farm.ledger.heartbeat("sd14", "w4", about=ABOUT)
    assert reasons(farm, batch) == []


def test_while_workers_start_other_batches_are_no_reason(farm: Farm) -> None:
    batch = submit(farm, "cats", "mini")
    submit(farm, "dogs", "mini")
    farm.batch("dogs").set_priority(7)
    assert reasons(farm, batch, starting=True) == []


def test_the_command_for_a_bundled_model_names_no_source(farm: Farm) -> None:
    [reason] = reasons(farm, submit(farm, "cats", "mini-flow"))
    assert "start one with `latentfarm worker --model mini-flow`" in reason


def test_workers_that_stop_do_not_count(farm: Farm) -> None:
    batch = submit(farm, "cats", "mini")
    farm.ledger.heartbeat("mini", "w1", about={**ABOUT, "draining": 1})
    assert reasons(farm, batch) == [
        "all workers of 'mini' stop and take no more jobs (w1); start one with `latentfarm worker --model mini`"
    ]
    assert [worker.draining for worker in farm.workers()] == [True]
    farm.ledger.heartbeat("mini", "w2", about={**ABOUT, "draining": 0})
    assert reasons(farm, batch) == []


def test_a_pause_a_canary_and_a_higher_priority_are_reasons(farm: Farm) -> None:
    farm.ledger.heartbeat("mini", "w1", about=ABOUT)
    paused, first, later = (
        submit(farm, "paused", "mini"),
        submit(farm, "first", "mini", priority=5),
        submit(farm, "b", "mini"),
    )
    paused.pause("lunch")
    assert reasons(farm, paused) == ["the batch is paused (by its user: lunch): `latentfarm resume paused`"]
    assert reasons(farm, first) == []
    assert reasons(farm, later) == ["batches of a higher priority run first (first): `latentfarm set-priority b N`"]
    first.cancel()
    assert reasons(farm, later) == reasons(farm, first) == []
    canary = submit(farm, "canary", "mini", canary=1, priority=9)
    [held] = lease(farm.ledger)
    farm.ledger.commit([(held, {"key": "k", "sha256": "", "bytes": 8})])
    [reason] = reasons(farm, canary)
    assert reason.startswith("the batch is paused (canary")
    assert reason.endswith("`latentfarm resume canary`")


def test_submit_status_wait_and_watch_warn_at_once(farm: Farm, latentfarm: Command, tmp_path: Any) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    submitted = latentfarm("submit", "p.txt", "--batch", "cats", "--model", "sd14", "--json", settings=farm.settings)
    warning, unknown = json.loads(submitted.stdout)["warnings"]
    assert warning.startswith("no worker is running now; start one with")
    assert unknown.startswith(
        "no worker has announced the model 'sd14' yet: rows that set no steps or guidance get 25 "
    )
    assert submitted.returncode == 0
    line = f"warning: cats: {warning}\n"
    assert submitted.stderr == f"{line}warning: cats: {unknown}\n"
    waited = latentfarm("wait", "cats", "--timeout", "0.1", "--json", settings=farm.settings)
    assert (waited.returncode, waited.stderr.count(line)) == (1, 1)
    assert json.loads(waited.stdout)["warnings"] == [warning]
    shown = latentfarm("status", settings=farm.settings)
    assert (shown.returncode, shown.stderr) == (0, line)
    assert json.loads(latentfarm("status", "cats", "--json", settings=farm.settings).stdout)["warnings"] == [warning]


def test_a_model_whose_steps_and_guidance_are_known_is_no_reason_to_warn(
    farm: Farm, latentfarm: Command, tmp_path: Any
) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    facts = ModelFacts(pipeline="FluxPipeline", model_digest="ab", native_width=64, native_height=64)
    farm.ledger.heartbeat("flux", "w", about={"facts": facts.model_dump_json()})
    both = ("--num-inference-steps", "4", "--guidance-scale", "0")
    for arguments in (("--model", "flux"), ("--model", "sd14", *both), ()):
        submitted = latentfarm("submit", "p.txt", *arguments, settings=farm.settings)
        assert submitted.returncode == 0
        assert "has announced the model" not in submitted.stderr


def test_the_end_of_a_cancelled_batch_is_counted(farm: Farm, latentfarm: Command, tmp_path: Any) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\na fox\na hen\na cow\n")
    submit_again = ("submit", "p.txt", "--batch", "pets", "--model", "sd14")
    assert latentfarm(*submit_again, settings=farm.settings).returncode == 0
    leases = farm.ledger.lease("sd14", "test", 3, lease_s=60)
    farm.ledger.commit([(each, {"key": "k", "sha256": "", "bytes": 8}) for each in leases[:2]])
    farm.ledger.fail(leases[2], {"code": "oom", "message": "too large"})
    farm.batch("pets").cancel()
    ends = "2 of 5 jobs done, 1 failed (oom 1), 2 cancelled"
    waited = latentfarm("wait", "pets", settings=farm.settings)
    assert waited.returncode == 1
    assert f"the batch was cancelled: {ends}\n" in waited.stderr
    watched = latentfarm("watch", "pets", settings=farm.settings)
    assert watched.returncode == 0
    assert watched.stdout.startswith(f"pets: cancelled  {ends}")
    again = latentfarm(*submit_again, settings=farm.settings)
    assert (again.returncode, again.stderr) == (
        2,
        "latentfarm: batch 'pets' is cancelled; choose another --batch name\n",
    )


def test_a_wait_repeats_its_warning_seldom_and_reports_a_new_one_at_once(
    farm: Farm, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, now = submit(farm, "cats", "sd14"), 0.0
    warn = WaitWarnings(farm.ledger, clock=lambda: now)

    def lines_until(end: float) -> list[float]:
        nonlocal now
        printed = []
        while now < end:
            warn([batch.status()])
            if capsys.readouterr().err:
                printed.append(now)
            now += 10
        return printed

    assert lines_until(1000) == [0, 120, 360, 840]
    farm.ledger.heartbeat("sd14", "w1", about=ABOUT)
    assert lines_until(1100) == []
    batch.pause()
    assert lines_until(1200) == [1100]


def test_batches_with_the_same_reason_share_a_line(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        submit(farm, f"b{number}", "sd14", count=1)
    for name, value in farm.settings.environment().items():
        monkeypatch.setenv(name, value)
    shown = CliRunner().invoke(app, ["status"])
    assert shown.stderr.startswith("warning: b0, b1, b2 and 2 more: no worker is running now")
    assert len(shown.stderr.splitlines()) == 1

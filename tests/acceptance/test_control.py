"""Control of running batches: real commands, real servers, a real worker."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.conftest import Command, empty, read_lines, until

from latentfarm import Batch, Farm
from latentfarm.ledger.webhook_outbox import WebhookOutbox
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings
from latentfarm.storage.keys import batch_prefix
from latentfarm.storage.results import flush_due
from latentfarm.submission.request import SubmitOptions
from latentfarm.webhooks.deliver import deliver_due

pytestmark = pytest.mark.acceptance

SMALL = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def worked(servers: Settings, connected: Farm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A farm with one worker, shared by the tests that need one. Each test uses its own batches."""
    empty(connected)
    log = tmp_path_factory.mktemp("worker") / "log"
    env = servers.model_copy(update={"slots": 8}).environment()
    worker = ManagedProcess("worker", [sys.executable, "-m", "latentfarm", "worker"], log=log, env=env)
    yield servers
    worker.terminate()
    assert worker.wait_or_kill(30) == 0, worker.log_tail()


def rows(count: int, steps: int) -> list[dict[str, Any]]:
    return [{"prompt": f"image {n}", "num_inference_steps": steps, **SMALL} for n in range(count)]


def on_unserved_model(
    settings: Settings, name: str, count: int, rules: SubmitOptions | None = None
) -> tuple[Farm, Batch]:
    """Submit a batch whose model no worker serves, so that the test leases its jobs."""
    farm = Farm.open(settings)
    return farm, farm.submit(rows(count, 2), batch=name, model="unserved", options=rules or SubmitOptions())


def fail(farm: Farm, count: int, code: str, message: str) -> None:
    for lease in farm.ledger.lease("unserved", "test", count, lease_s=60):
        farm.ledger.fail(lease, {"code": code, "message": message})


@contextmanager
def at_a_terminal(folder: Path, settings: Settings, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the command with a terminal as stdin, stdout and stderr."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "latentfarm", *arguments]
    environment = {**os.environ, **settings.environment(), "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, text: str) -> str:
    """Return the output of the command up to a text, or all of it."""
    seen = ""
    # a terminal ends with an error, not with an empty read
    with suppress(OSError):
        while text not in seen:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Press Ctrl-C until the command ends: just before it begins to read the terminal, one is noticed after it only."""
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)


def output(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_paused_batch_starts_no_job_and_a_resumed_one_completes(
    worked: Settings, latentfarm: Command, tmp_path: Path
) -> None:
    # more jobs than are leased at once, and than end while a command starts
    jobs, farm = 150, Farm.open(worked)
    cats = farm.submit(rows(jobs, 16), batch="cats")
    environment = {**os.environ, **worked.environment()}
    command = [sys.executable, "-m", "latentfarm", "watch", "cats", "--json"]
    watching = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    until(lambda: cats.status().done > 0)

    assert output(latentfarm("pause", "cats", settings=worked)) == "cats is paused"
    until(lambda: cats.status().leased == 0)
    paused = cats.status()
    assert 0 < paused.done < jobs
    # the worker renders other batches meanwhile
    assert farm.submit(rows(2, 2), batch="dogs").wait(timeout_s=90).done == 2
    assert cats.status().done == paused.done
    assert output(latentfarm("pause", "cats", settings=worked)) == "cats is already paused: by its user"
    assert "paused   by its user" in output(latentfarm("status", "cats", settings=worked))

    assert output(latentfarm("resume", "cats", settings=worked)) == "cats continues: open"
    assert cats.wait(timeout_s=120).done == jobs
    over = latentfarm("pause", "cats", settings=worked)
    assert (over.returncode, "is complete" in over.stderr) == (2, True)

    lines = [json.loads(line) for line in watching.communicate(timeout=60)[0].splitlines()]
    assert watching.returncode == 0
    assert [line["done"] for line in lines] == sorted(line["done"] for line in lines)
    assert "by its user" in {line["paused"] for line in lines}
    assert (lines[-1]["state"], lines[-1]["done"]) == ("complete", jobs)


def test_cancel_frees_the_running_slots_and_retry_runs_the_failed_jobs_only(
    worked: Settings, latentfarm: Command
) -> None:
    farm = Farm.open(worked)
    # the first of these would take two minutes
    long = farm.submit([{**row, "width": 128, "height": 128} for row in rows(30, 500)], batch="long")
    until(lambda: long.status().leased >= 8)
    long.pause()
    mixed = farm.submit(rows(6, 4), batch="mixed")
    for lease, code in zip(
        farm.ledger.lease("mini", "test", 2, lease_s=60), ("non_finite", "engine_error"), strict=True
    ):
        assert lease.batch == "mixed"
        farm.ledger.fail(lease, {"code": code, "message": "from the test"})

    assert output(latentfarm("cancel", "long", settings=worked)) == "long is cancelled: 0 done, 0 failed, 30 cancelled"
    assert mixed.wait(timeout_s=60).failed == 2
    assert (long.status().leased, farm.ledger.redis.zcard("{lf}:leases")) == (0, 0)
    assert output(latentfarm("cancel", "long", settings=worked)) == "long is already cancelled"
    assert latentfarm("resume", "long", settings=worked).returncode == 2
    assert output(latentfarm("watch", "long", settings=worked)) == "long: cancelled  0 of 30 jobs done, 30 cancelled"

    before = {line["job"]: line.get("epoch") for line in mixed.results() if line["state"] == "done"}
    assert output(latentfarm("retry", "mixed", "--code", "non_finite", settings=worked)) == "mixed runs 1 job again"
    until(lambda: mixed.status().done == 5)
    assert mixed.status().errors == {"engine_error": 1}
    none = "mixed has no failed job with code 'non_finite' to run again; it has 1 failed (engine_error 1)"
    assert output(latentfarm("retry", "mixed", "--code", "non_finite", settings=worked)) == none
    assert json.loads(output(latentfarm("retry", "mixed", "--json", settings=worked)))["failed"] == 0
    assert mixed.wait(timeout_s=60).done == 6
    assert output(latentfarm("retry", "mixed", settings=worked)) == "mixed has no failed job to run again"
    after = {line["job"]: line["epoch"] for line in mixed.results()}
    assert {job: after[job] for job in before} == before, "done jobs were not rendered again"


def test_delete_prompts_and_leaves_neither_keys_nor_objects(
    worked: Settings, latentfarm: Command, tmp_path: Path
) -> None:
    farm = Farm.open(worked)
    batch = farm.submit(rows(12, 2), batch="doomed")
    batch.wait(timeout_s=90)
    without_yes = latentfarm("delete", "doomed", settings=worked)
    assert (without_yes.returncode, "write --yes" in without_yes.stderr) == (2, True)
    for code in (1, 130):
        with at_a_terminal(tmp_path, worked, "delete", "doomed") as (process, terminal):
            prompt = read_until(terminal, "]")
            assert "Delete 12 images and everything else of batch 'doomed'? [y/N]" in prompt
            # the answer no, or Ctrl-C
            if code == 1:
                os.write(terminal, b"n\n")
            else:
                interrupt(process)
            assert "nothing was deleted" in read_until(terminal, "deleted")
            assert process.wait(60) == code
    assert batch.status().done == 12

    objects = sum(1 for _ in farm.bucket.keys("batches/doomed/"))
    assert objects >= 12
    removed = output(latentfarm("delete", "doomed", "--yes", settings=worked))
    assert removed == f"doomed is deleted: {objects} objects"
    assert list(farm.bucket.keys("batches/doomed/")) == []
    client: Any = farm.ledger.redis
    # those that expire by themselves count the pace, and repeat the reply to a lease
    # the stream of events names the batch as deleted. A dump of it shows the name or not, by how it is compressed
    assert any(fields[b"batch"] == b"doomed" for _, fields in client.xrevrange("{lf}:events") if b"batch" in fields)
    lasting = [key for key in client.keys("{lf}:*") if client.ttl(key) < 0 and key != b"{lf}:events"]
    assert [key for key in lasting if b"doomed" in key or b"doomed" in (client.dump(key) or b"")] == []
    assert (
        output(latentfarm("delete", "doomed", "--yes", settings=worked)) == "doomed does not exist; nothing to delete"
    )
    assert latentfarm("status", "doomed", settings=worked).returncode == 2
    assert latentfarm("delete", "../x", "--yes", settings=worked).returncode == 2


def test_several_batches_are_paused_together_or_not_at_all(settings: Settings, latentfarm: Command) -> None:
    farm, _ = on_unserved_model(settings, "one", 2)
    on_unserved_model(settings, "two", 2)
    unknown = latentfarm("pause", "one", "tow", settings=settings)
    assert (unknown.returncode, "'tow' is unknown" in unknown.stderr) == (2, True)
    assert farm.batch("one").status().state == "open"
    assert output(latentfarm("pause", "one", "two", settings=settings)) == "one is paused\ntwo is paused"

    listed = latentfarm("status", "--state", "paused", "--json", settings=settings)
    assert [each["batch"] for each in json.loads(listed.stdout)] == ["one", "two"]
    assert output(latentfarm("status", "--state", "open", settings=settings)) == ""
    both = latentfarm("status", "one", "--state", "open", settings=settings)
    assert (both.returncode, "leave out either it or BATCH" in both.stderr) == (2, True)
    assert output(latentfarm("resume", "one", "two", settings=settings)) == "one continues: open\ntwo continues: open"
    again = output(latentfarm("resume", "one", "two", "--json", settings=settings))
    assert [json.loads(line)["state"] for line in again.splitlines()] == ["open", "open"]
    assert output(latentfarm("resume", "one", settings=settings)) == "one is already open"
    refused = latentfarm("status", "--state", "done", settings=settings)
    assert (refused.returncode, "write one of opening, open" in refused.stderr) == (2, True)


def test_a_priority_may_be_negative_and_is_kept(settings: Settings, latentfarm: Command) -> None:
    _, batch = on_unserved_model(settings, "low", 1)
    assert output(latentfarm("set-priority", "low", "-5", settings=settings)) == "low has priority -5"
    assert output(latentfarm("set-priority", "low", "-5", settings=settings)) == "low already has priority -5"
    assert batch.status().priority == -5
    assert latentfarm("set-priority", "low", "1001", settings=settings).returncode == 2


def test_failed_jobs_are_grouped_by_code(settings: Settings, latentfarm: Command) -> None:
    farm, _ = on_unserved_model(settings, "ill", 30, SubmitOptions(webhook="https://hooks.example.com/"))
    fail(farm, 1, "non_finite", "another")
    fail(farm, 24, "non_finite", "not finite")
    fail(farm, 5, "engine_error", "broke")
    lines = output(latentfarm("jobs", "ill", "--state", "failed", settings=settings)).split("\n")
    assert lines[0] == "non_finite  25 jobs, 24 of them: not finite"
    assert lines[1:3] == ["  ill/0  another", "  ill/1"]
    assert lines[20:23] == ["  ill/19", "  ... and 5 more", "engine_error  5 jobs: broke"]
    assert lines[23:] == [f"  ill/{n}" for n in range(25, 30)]
    whole = latentfarm("jobs", "ill", "--state", "failed", "--json", settings=settings).stdout
    assert [json.loads(line)["id"] for line in whole.splitlines()] == [f"ill/{n}" for n in range(30)]

    # a webhook is due once the results are stored; a live worker may have done this, and tried to send it
    flush_due(farm.ledger, farm.bucket)
    deliver_due(farm.ledger, settings)
    until(lambda: bool(WebhookOutbox(farm.ledger).last_error("ill")))
    errors, webhook = output(latentfarm("status", "ill", settings=settings)).split("\n")[2:]
    assert errors == "errors   30 failed (non_finite 25, engine_error 5)"
    assert webhook.startswith("webhook  due: LATENTFARM_WEBHOOK_SECRET is not set; set one on the workers")


def test_truncated_prompts_are_reported_once_with_the_cure(settings: Settings, latentfarm: Command) -> None:
    farm, batch = on_unserved_model(settings, "long", 3)
    for lease in farm.ledger.lease("unserved", "test", 3, lease_s=60):
        farm.ledger.commit([(lease, {"key": "k", "prompt_truncated": lease.index > 0})])
    cure = (
        "2 prompts were truncated to what the model reads; with CLIP alone, --prompt-syntax a1111 encodes longer ones"
    )
    assert latentfarm("wait", "long", settings=settings).stderr.splitlines()[-1] == cure
    assert latentfarm("watch", "long", settings=settings).stderr.splitlines() == [f"long: {cure}"]
    assert output(latentfarm("status", "long", settings=settings)).splitlines()[-1] == f"prompts  {cure}"
    assert json.loads(latentfarm("status", "--json", settings=settings).stdout)[0]["truncated"] == 2
    assert batch.status().truncated == 2


def test_a_retry_in_a_paused_batch_reports_the_reason_of_the_pause(settings: Settings, latentfarm: Command) -> None:
    farm, batch = on_unserved_model(settings, "held", 3)
    fail(farm, 2, "non_finite", "not finite")
    batch.pause("lunch")
    reported = output(latentfarm("retry", "held", settings=settings))
    assert reported == "held will run 2 jobs again after `resume`: by its user: lunch"
    assert batch.status().pending == 3


def test_watch_draws_a_table_on_a_terminal_until_every_batch_has_ended(settings: Settings, tmp_path: Path) -> None:
    farm, batch = on_unserved_model(settings, "seen", 4)
    with at_a_terminal(tmp_path, settings, "watch") as (process, terminal):
        assert "0/4" in read_until(terminal, "0/4")
        fail(farm, 3, "non_finite", "not finite")
        assert "3 failed (non_finite 3)" in read_until(terminal, "(non_finite 3)")
        batch.cancel()
        assert "cancelled" in read_until(terminal, "cancelled")
        read_until(terminal, "never printed, so all output is read")
        assert process.wait(60) == 0


def test_watch_ends_quietly_on_ctrl_c(settings: Settings, tmp_path: Path) -> None:
    on_unserved_model(settings, "seen", 4)
    with at_a_terminal(tmp_path, settings, "watch", "seen") as (process, terminal):
        read_until(terminal, "0/4")
        process.send_signal(signal.SIGINT)
        rest = read_until(terminal, "never printed, so all output is read")
        assert process.wait(60) == 130
    assert "Traceback" not in rest


def test_of_drafts_the_picked_become_the_images_of_an_uninterrupted_run_and_the_rest_is_deleted(
    worked: Settings, latentfarm: Command, tmp_path: Path
) -> None:
    found = [{"prompt": f"image {n}", "seed": n, **SMALL} for n in range(6)]
    found += [{**found[n], "draft": 0} for n in (1, 4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, found)))

    def run(*words: str) -> str:
        ended = latentfarm(*words, settings=worked)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    options = ["--draft", "40%", "--num-inference-steps", "12", "--wait"]
    run("submit", "rows.jsonl", "--batch", "sketched", *options)
    listed = [json.loads(line) for line in run("drafts", "sketched", "--sheet", "sheet.png", "--json").splitlines()]
    assert [(line["index"], line["draft"]["evaluations"], line["draft"]["of"]) for line in listed] == [
        (n, 5, 12) for n in range(6)
    ]
    assert all(line["scores"]["sharpness"] > 0 and len(line["scores"]["phash"]) == 16 for line in listed)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 192
    priced = json.loads(run("finish", "sketched", "--indices", "1,4", "--dry-run", "--json"))["price"]
    assert {name: work["evaluations"] for name, work in priced.items()} == {"made": 30, "finish": 14, "saved": 28}
    assert priced["saved"]["gpu_hours"] == pytest.approx(2 * priced["finish"]["gpu_hours"])
    farm = Farm.open(worked)
    farm.batch("sketched").pick([4], "picked")
    run("finish", "sketched", "--indices", "1,4", "--wait")
    run("discard", "sketched", "--yes")
    run("fetch", "sketched", "-o", "out")
    results = [line for line in read_lines(tmp_path / "out" / "results.jsonl") if line["state"] == "done"]
    assert [(line["index"], line.get("pick")) for line in results] == [(1, None), (4, "picked"), (6, None), (7, None)]
    pixels = []
    for line in results:
        with Image.open(tmp_path / "out" / line["file"]) as image:
            pixels.append(image.tobytes())
    assert pixels[:2] == pixels[2:]
    # the worker deletes a checkpoint after its image is committed
    until(lambda: not list(farm.bucket.keys(f"{batch_prefix('sketched')}drafts/")))

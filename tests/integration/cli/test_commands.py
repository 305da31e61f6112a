"""Commands that read or change a farm without a worker: the real command, Redis and S3 server."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from tests.conftest import Command
from tests.support.invocation import invoke
from tests.support.leasing import lease

from latentfarm import Farm
from latentfarm.batch_kind import BatchKind
from latentfarm.storage.keys import image_key, images_prefix, manifest_key
from latentfarm.submission.request import SubmitOptions

pytestmark = pytest.mark.integration


def test_gc_deletes_the_images_of_lost_leases_and_keeps_the_committed_ones(farm: Farm, latentfarm: Command) -> None:
    farm.submit(["a cat"], batch="cats")
    [lost] = lease(farm.ledger)
    farm.ledger.release([lost])
    [held] = lease(farm.ledger)
    orphan, kept = (image_key("cats", 0, each.epoch) for each in (lost, held))
    for key in (orphan, kept):
        farm.bucket.put(key, b"an image")
    farm.ledger.commit([(held, {"key": kept, "sha256": "", "bytes": 8})])

    collected = latentfarm("gc", "cats", settings=farm.settings)
    assert (collected.returncode, collected.stdout) == (0, "1 object deleted\n"), collected.stderr
    assert list(farm.bucket.keys(images_prefix("cats", 0))) == [kept]
    again = latentfarm("gc", "cats", "--json", settings=farm.settings)
    assert json.loads(again.stdout) == {"batch": "cats", "objects": 0}
    assert latentfarm("gc", "dogs", settings=farm.settings).returncode == 2


def test_estimate_counts_rows_and_images_and_submits_nothing(farm: Farm, latentfarm: Command, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\na cat\na dog\n")
    options = ("--model", "unserved", "--sweep", "seed=1..4")
    estimated = latentfarm("estimate", "p.txt", *options, settings=farm.settings)
    assert estimated.returncode == 0, estimated.stderr
    lines = dict(line.split(maxsplit=1) for line in estimated.stdout.splitlines() if line[0] != "o")
    assert (lines["rows"], lines["duplicates"], lines["images"]) == ("3", "1", "12")
    assert lines["size"] == "unknown: no worker has rendered with 'unserved' yet"
    assert farm.ledger.batches() == []
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "width": 65}\n')
    invalid = latentfarm("estimate", "bad.jsonl", "--json", settings=farm.settings)
    assert (invalid.returncode, json.loads(invalid.stdout)["invalid"]) == (1, 1)


def test_dynamic_prompts_depend_on_their_seed_alone(farm: Farm, latentfarm: Command, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a {red|green|blue|white|black} cat\n" * 8)
    prompts = []
    for number, seed in enumerate(("1", "1", "2")):
        options = ("--batch", f"b{number}", "--dynamic-prompts", "--dynamic-prompts-seed", seed)
        submitted = latentfarm("submit", "p.txt", *options, settings=farm.settings)
        assert submitted.returncode == 0, submitted.stderr
        prompts.append([line["request"]["prompt"] for line in farm.batch(f"b{number}").results()])
    assert prompts[0] == prompts[1] != prompts[2]


def test_workers_and_jobs_of_an_idle_farm_are_listed(farm: Farm, latentfarm: Command) -> None:
    farm.submit(["a cat", "a dog"], batch="pets")
    jobs = latentfarm("jobs", "pets", settings=farm.settings)
    assert jobs.stdout == "pets/0  pending\npets/1  pending\n"
    assert "state     pending" in latentfarm("job", "pets/1", settings=farm.settings).stdout
    workers = latentfarm("workers", settings=farm.settings)
    assert (workers.returncode, workers.stdout) == (0, "")
    assert "no worker is running now" in workers.stderr


def test_status_leaves_interactive_batches_out_unless_all_are_listed(farm: Farm) -> None:
    farm.submit(["a cat"], batch="cats")
    farm.submit(["a dog"], batch="interactive-0", options=SubmitOptions(kind=BatchKind.INTERACTIVE, owner="alice"))
    code, text = invoke(farm.settings, "status")
    assert (code, "interactive-0" in text) == (0, False)
    assert "1 interactive batch is left out; --all lists all" in text
    code, text = invoke(farm.settings, "status", "--all", "--json")
    listed = json.loads(text[text.index("[") : text.rindex("]") + 1])
    assert [(each["batch"], each["kind"], each["owner"]) for each in listed] == [
        ("cats", "submitted", ""),
        ("interactive-0", "interactive", "alice"),
    ]
    # the times of the ledger, to the millisecond
    [created] = [time for time, name in farm.ledger.newest_batches() if name == "cats"]
    assert datetime.fromisoformat(listed[0]["created"]).timestamp() == created / 1000
    assert farm.batch("cats").status().created == datetime.fromisoformat(listed[0]["created"])
    assert "interactive-0" in invoke(farm.settings, "status", "interactive-0")[1]
    assert invoke(farm.settings, "status", "cats", "--all")[0] == 2


def test_recover_skips_what_has_no_header_unless_it_is_named(farm: Farm) -> None:
    farm.submit(["a cat"], batch="cats")
    farm.bucket.put(manifest_key("half", 0), b"of a submission that was killed")
    code, text = invoke(farm.settings, "recover")
    assert code == 0
    assert "skipped: batch 'half' has no batch.json" in text
    assert "cats" in text
    assert invoke(farm.settings, "recover", "half")[0] == 2

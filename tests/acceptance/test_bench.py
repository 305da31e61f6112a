"""``latentfarm bench`` as a user runs it, on a model of a million parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import Command
from tests.support.tiny import make_tiny

from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket

pytestmark = pytest.mark.acceptance

QUICK = ("--num-inference-steps", "2")


def test_bench_reports_throughput_and_stage_times_and_leaves_no_object(
    latentfarm: Command, settings: Settings, tmp_path: Path
) -> None:
    model = make_tiny(tmp_path / "tiny")
    done = latentfarm("bench", "--model", f"t={model}", "--slots", "1,2", *QUICK, "--json", settings=settings)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["model"], report["width"], report["num_inference_steps"], report["compiled"]) == ("t", 64, 2, False)
    assert [line["slots"] for line in report["slots"]] == [1, 2]
    for line in report["slots"]:
        assert (line["warm_up_images"], line["images"]) == (line["slots"], 2 * line["slots"])
        assert min(line[f"{stage}_s"] for stage in ("text", "denoise", "decode", "encode", "upload")) > 0
        assert 0 < line["busy_share"] <= 1
    assert report["best_slots"] == max(report["slots"], key=lambda line: line["images_per_s"])["slots"]
    assert list(Bucket.connect(settings).keys("")) == []


def test_bench_needs_no_farm_and_rejects_invalid_numbers_before_it_loads(latentfarm: Command, tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "tiny")
    done = latentfarm("bench", "--model", str(model), "--slots", "1", *QUICK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:3] == ["slots", "images/s", "busy"]
    assert "\n1 slot: " in done.stderr
    assert ", timed over 2 images after " in done.stderr
    assert "\nfastest with 1 slot: " in done.stdout
    for invalid, cure in ((("--slots", "1,x"), "1 to 256"), (("--width", "100"), "write 96 or 104")):
        refused = latentfarm("bench", *invalid)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert cure in refused.stderr
        assert "loading" not in refused.stderr

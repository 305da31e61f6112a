"""``render`` with real processes and real interruptions."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tests.conftest import Command, read_lines, until

from latentfarm import Farm
from latentfarm.settings import Settings

pytestmark = pytest.mark.acceptance

FEW_STEPS = ("--num-inference-steps", "4", "--width", "64", "--height", "64")


def test_prompts_become_images_once(latentfarm: Command, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# two\na red circle\n\na blue square\n")
    first = latentfarm("render", "p.txt", "-o", "out", *FEW_STEPS, "--scheduler", "euler", "--json")
    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout)
    assert (summary["total"], summary["done"], summary["downloaded"]) == (2, 2, 2)
    out = tmp_path / "out"
    assert {f.name for f in out.iterdir() if not f.name.startswith(".")} == {
        *("000000.png", "000001.png", "contact-sheet.png", "results.jsonl", "metadata.jsonl")
    }
    lines = read_lines(out / "results.jsonl")
    assert [line["prompt"] for line in lines] == ["a red circle", "a blue square"]
    assert [line["scheduler"] for line in lines] == ["EulerDiscreteScheduler"] * 2
    with Image.open(out / "000000.png") as image:
        image.load()
        assert image.size == (64, 64)
        assert image.info["parameters"].startswith("a red circle\nSteps: 4, Sampler: Euler, ")
        receipt = json.loads(image.info["latentfarm"])
        assert (receipt["job"], receipt["request"]["seed"]) == (lines[0]["job"], lines[0]["seed"])

    log = tmp_path / ".latentfarm" / "logs" / "worker-1.log"
    log.unlink()
    again = latentfarm("render", "p.txt", "-o", "out", *FEW_STEPS, "--scheduler", "euler", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["downloaded"] == 0
    assert not log.exists(), "no worker was needed"
    assert not (tmp_path / ".latentfarm" / "farm.json").exists(), "everything that was started is stopped"

    (tmp_path / "p.txt").write_text("a green star\n")
    other = latentfarm("render", "p.txt", "-o", "out", *FEW_STEPS, "--scheduler", "euler")
    assert other.returncode == 2
    assert f"out has the images of batch {summary['batch']}; choose another folder" in other.stderr
    assert not log.exists(), "nothing was started"
    assert len(read_lines(out / "results.jsonl")) == 2


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_render_continues(latentfarm: Command, tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {n}" for n in range(24)))
    options = ("render", "p.txt", "-o", "out", "--num-inference-steps", "20", "--width", "64", "--height", "64")
    command = [sys.executable, "-m", "latentfarm", *options, "--batch", "b", "--slots", "2"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until((tmp_path / ".latentfarm" / "farm.json").exists)
    farm = Farm.open(Settings.load(tmp_path / ".latentfarm"))
    until(lambda: "b" in farm.ledger.batches() and farm.batch("b").status().done > 0)
    running.send_signal(how)
    _, rest = running.communicate(timeout=60)
    assert running.returncode == 130, rest
    assert "run the same command again" in rest

    again = latentfarm(*options, "--batch", "b", "--slots", "4")
    assert again.returncode == 0, again.stderr
    assert len(read_lines(tmp_path / "out" / "results.jsonl")) == 24
    log = (tmp_path / ".latentfarm" / "logs" / "worker-1.log").read_text()
    rendered = sum(int(line.rpartition(" ")[2]) for line in log.splitlines() if "] rendered " in line)
    assert rendered == 24, "nothing was rendered twice"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("render", "none.txt", "-o", "out"), "none.txt cannot be read"),
        (("render", "p.txt", "-o", "out", "--scheduler", "eulr"), "did you mean 'euler'"),
        (("render", "p.txt", "-o", "out", "--width", "1030"), "write 1024 or 1032"),
        (("render", "p.txt", "-o", "out", "--model", "nothing"), "model 'nothing': write mini"),
        (("render", "p.txt", "-o", "out", "--dtype", "float8"), "--dtype 'float8': write one of"),
        (("render", "bad.jsonl", "-o", "out"), "bad.jsonl line 2: width 1030 is not a multiple of 8"),
        (("up", "--model", "nothing"), "model 'nothing'"),
        (("status",), "start one here with `latentfarm up`"),
        (("job", "cats"), "write BATCH/INDEX"),
        (("render", "p.txt"), "Missing option"),
        (("render", "p.txt", "-o", "p.txt"), "p.txt cannot be written: it is not a folder"),
        (("render", "p.txt", "-o", "p.txt/out"), "p.txt/out cannot be written"),
        (("render", "p.txt", "-o", "."), "contact-sheet.png is there already"),
    ],
)
def test_an_invalid_command_is_rejected_with_its_cure_and_starts_nothing(
    latentfarm: Command, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    (tmp_path / "contact-sheet.png").write_text("mine")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "width": 1030}\n')
    result = latentfarm(*arguments)
    assert result.returncode == 2, result.stderr
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / ".latentfarm").exists()


@pytest.mark.parametrize("missing", ["redis", "s3"])
def test_an_unreachable_store_or_redis_is_exit_code_3(latentfarm: Command, tmp_path: Path, missing: str) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    environment = {
        "LATENTFARM_REDIS_URL": "redis://:secret@127.0.0.1:1/0",
        "LATENTFARM_BUCKET": "b",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    command = ("status",) if missing == "redis" else ("submit", "p.txt")
    result = latentfarm(*command, **environment)
    assert result.returncode == 3, result.stderr
    assert "127.0.0.1:1" in result.stderr
    assert "secret" not in result.stderr


def test_an_image_of_this_machine_equals_that_of_diffusers(latentfarm: Command, tmp_path: Path) -> None:
    import numpy as np
    import torch
    from diffusers import StableDiffusionPipeline
    from tests.support.tiny import make_tiny

    model = make_tiny(tmp_path / "tiny-model")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a red circle", "seed": 7, "num_inference_steps": 6}\n')
    result = latentfarm("render", "p.jsonl", "-o", "out", "--model", f"mine={model}")
    assert result.returncode == 0, result.stderr
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    [reference] = pipe(
        "a red circle", num_inference_steps=6, generator=torch.Generator("cpu").manual_seed(7), output_type="np"
    ).images
    with Image.open(io.BytesIO((tmp_path / "out" / "000000.png").read_bytes())) as image:
        found = np.asarray(image).astype(int)
    assert np.abs(found - (reference * 255).round().astype(int)).max() <= 1


def test_images_of_two_workers_are_verified_by_rendering_them_again(
    settings: Settings, latentfarm: Command, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {n}" for n in range(6)))
    # two workers of one machine have half its cores each, and the command that verifies has all of them
    made = latentfarm("render", "p.txt", "-o", "out", *FEW_STEPS, "--batch", "b", "--workers", "2", settings=settings)
    assert made.returncode == 0, made.stderr
    farm = Farm.open(settings)
    lines = list(farm.batch("b").results())
    [threads] = {line["threads"] for line in lines}
    assert threads == max(1, (os.cpu_count() or 1) // 2)

    well = latentfarm("verify", "b", "--sample", "4", settings=settings)
    assert (well.returncode, well.stdout) == (0, "4 of 4 images: equal bytes\n"), well.stderr
    [rows] = {line["micro_batch"] for line in lines}
    assert f"rendered again on cpu, float32, micro-batch {rows}, threads {threads}" in well.stderr

    farm.bucket.put(lines[3]["key"], farm.bucket.get(lines[4]["key"]))
    ill = latentfarm("verify", "b", "--all", "--json", settings=settings)
    assert ill.returncode == 1, ill.stderr
    found = json.loads(ill.stdout)
    assert (found["images"], found["same_bytes"], found["bound"], found["other_conditions"]) == (6, 5, 0, {})
    assert [each["job"] for each in found["different"]] == ["b/3"]


def test_the_first_render_of_a_model_has_the_models_own_steps_and_guidance(latentfarm: Command, tmp_path: Path) -> None:
    from tests.support.tiny import make_tiny

    model = make_tiny(tmp_path / "klein", kind="flux2-distilled")
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a red circle"}\n{"prompt": "a blue star", "num_inference_steps": 2}\n'
    )

    first = latentfarm("render", "p.jsonl", "-o", "out", "--model", f"klein={model}", "--batch", "b")

    assert first.returncode == 0, first.stderr
    lines = read_lines(tmp_path / "out" / "results.jsonl")
    assert [(line["num_inference_steps"], line["guidance_scale"]) for line in lines] == [(4, 1), (2, 1)]
    (tmp_path / "wide.jsonl").write_text('{"prompt": "a red circle", "width": 72}\n')
    wide = latentfarm("render", "wide.jsonl", "-o", "wide", "--model", f"klein={model}")
    assert wide.returncode == 2
    assert "wide.jsonl line 1: width 72 is not a multiple of 16; write 64 or 80" in wide.stderr

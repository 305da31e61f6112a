"""Many different jobs, each with the same bytes alone, in company, in another process, and after a retry."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import single_thread
from tests.support.tiny import make_tiny

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.integration

COUNT, SLOTS = 200, 2
SCHEDULERS = ["euler", "euler_a", "dpm++2m", "heun", "ddim", "unipc", "lcm"]
SIZES = [(None, None)] * 4 + [(96, 64), (64, 128)]


def jobs() -> list[Job]:
    dice = random.Random(7)  # noqa: S311 (dice, not keys)
    return [_job(dice, index) for index in range(COUNT)]


def _job(dice: random.Random, index: int) -> Job:
    width, height = dice.choice(SIZES)
    return Job(
        batch="b",
        index=index,
        prompt=f"image {index}, " + "and more " * dice.choice([0, 0, 0, 12]),
        prompt_syntax=dice.choice(["plain", "plain", "a1111"]),
        seed=index,
        width=width,
        height=height,
        num_inference_steps=dice.randint(1, 3),
        guidance_scale=dice.choice([1.0, 3.0, 7.5]),
        guidance_interval=dice.choice([None, None, (0.0, 0.5)]),
        scheduler=SCHEDULERS[index % len(SCHEDULERS)],
    )


def load(folder: Path) -> Any:
    return load_family(folder, dtype=torch.float32, device=torch.device("cpu"))


def render(engine: Engine, wanted: list[Job]) -> dict[int, str]:
    """Return a digest of each image's pixels."""
    for job in wanted:
        engine.admit(job)
    done = {}
    while engine.busy:
        for outcome in engine.step():
            assert isinstance(outcome, Rendered), outcome
            done[outcome.job.index] = hashlib.sha256(outcome.pixels.numpy().tobytes()).hexdigest()
    return done


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    # as the other process has
    with single_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "sd1")


@pytest.fixture(scope="module")
def sd1(folder: Path) -> Any:
    return load(folder)


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    engine = Engine(load(folder), slots=SLOTS)
    for job in jobs():
        found |= render(engine, [job])
    assert len(set(found.values())) == COUNT
    return found


def shuffled(seed: int) -> list[Job]:
    wanted = jobs()
    random.Random(seed).shuffle(wanted)  # noqa: S311
    return wanted


def test_in_random_company(sd1: Any, alone: dict[int, str]) -> None:
    assert render(Engine(sd1, slots=SLOTS), shuffled(1)) == alone


def test_after_a_restart(folder: Path, alone: dict[int, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.engine.test_exactness", str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    found = {int(index): digest for index, digest in json.loads(done.stdout).items()}
    assert found == {job.index: alone[job.index] for job in shuffled(3)}


def test_after_a_retry(sd1: Any, alone: dict[int, str]) -> None:
    engine, wanted = Engine(sd1, slots=SLOTS), shuffled(2)
    for job in wanted:
        engine.admit(job)
    for _ in range(3):
        engine.step()
    by_name = {job.name: job for job in wanted}
    again = [by_name[str(handle)] for handle in engine.abort_all()]
    assert 0 < COUNT - len(again) < COUNT / 2, "some images are finished, and some are half rendered"
    assert render(engine, again) == {job.index: alone[job.index] for job in again}


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(render(Engine(load(Path(sys.argv[1])), slots=SLOTS), shuffled(3))))

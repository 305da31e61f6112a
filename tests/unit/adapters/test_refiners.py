"""Refiners that cannot be used fail their own jobs, with a code and a cure."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from tests.support.controlled import catalogue_of
from tests.support.engines import make, run_isolating
from tests.support.loras import damaged
from tests.support.refined import Refinable, load, make_refinable, refined
from tests.support.tiny.refiners import make_refiner

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Failed, Rendered

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Refinable:
    return make_refinable(tmp_path_factory.mktemp("models"))


def error_of(family: Any, job: Job) -> JobError:
    with pytest.raises(JobError) as caught:
        Engine(family, slots=1).prepare(job)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"refiner": "gone"}, "adapter_unknown", "refiner 'gone' is unknown; write fine, other"),
        (
            {"refiner_start": 0.01},
            "refiner_without_steps",
            "refiner_start 0.01 of 5 steps leaves the model none; write a greater one, or more steps",
        ),
        (
            {"refiner_start": 0.9999},
            "refiner_without_steps",
            "refiner_start 0.9999 of 5 steps leaves the refiner none; write a smaller one, or more steps",
        ),
    ],
)
def test_a_refiner_that_cannot_end_the_run_is_an_error_with_a_cure(
    subject: Refinable, fields: dict[str, Any], code: str, message: str
) -> None:
    error = error_of(subject.family, refined(0, "euler", scheduler_options={}, **fields))
    assert (error.code, str(error)) == (code, message)


def test_other_models_take_no_refiner(sd1: Any) -> None:
    error = error_of(sd1, refined(0, "euler"))
    assert error.code == "adapter_mismatch"
    assert "models of StableDiffusionPipeline take none; remove refiner" in str(error)


def test_a_refiner_of_another_base_or_with_damaged_files_fails_its_own_job(subject: Refinable, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    wide = {"cross_attention_dim": 128, "projection_class_embeddings_input_dim": 128 + 5 * 32}
    make_refiner(folder / "wide", subject.folder, **wide)
    make_refiner(folder / "five", subject.folder, in_channels=5)
    for name, change in {
        "less": lambda tensors: tensors.pop("conv_out.bias"),
        "other": lambda tensors: tensors.update({"conv_out.bias": torch.ones(5)}),
    }.items():
        copytree(subject.refiners / "fine", folder / name)
        damaged(folder / name / "diffusion_pytorch_model.safetensors", change)
    family = load(subject.folder)
    family.use_catalogue(catalogue_of(folder, tmp_path / "cache"))
    found = {name: error_of(family, refined(0, refiner=name)) for name in ("wide", "five", "less", "other")}
    assert {name: error.code for name, error in found.items()} == {
        "wide": "adapter_mismatch",
        "five": "adapter_mismatch",
        "less": "adapter_invalid",
        "other": "adapter_invalid",
    }
    assert "its cross_attention_dim is 128, and the model needs 64" in str(found["wide"])
    assert "its in_channels is 5, and the model needs 4" in str(found["five"])
    assert all("conv_out.bias" in str(found[name]) for name in ("less", "other"))


def test_a_refiner_for_which_the_device_has_no_memory_fails_its_own_job(
    subject: Refinable, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = subject.family.adapter_modules

    def begin(loaded: Any) -> None:
        raise JobError("oom", f"no memory on the device for {loaded.name}")

    engine = Engine(subject.family, slots=3)
    jobs = [refined(0, "euler"), make(1, width=64, height=64), refined(2, "euler", refiner="other")]
    monkeypatch.setattr(module, "begin", begin)
    for job in jobs:
        engine.admit(job)
    done = run_isolating(engine)
    failed = [done[0], done[2]]
    assert all(isinstance(each, Failed) and each.error.code == "oom" for each in failed)
    assert isinstance(done[1], Rendered)
    assert engine.free == 3

"""Nets that are unknown, of another base, damaged or too large fail the jobs that name them, and no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.controlled import catalogue_of, job, noise_image, prepared
from tests.support.engines import pixels, run, run_isolating
from tests.support.tiny import make_tiny
from tests.support.tiny.controlnets import make_controlnet

from latentfarm.errors import JobError
from latentfarm_worker.engine.engine import Engine, Failed
from latentfarm_worker.engine.job_inputs import JobInputs
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

IMAGE = noise_image(1)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "sd1")


@pytest.fixture(scope="module")
def net(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_controlnet(tmp_path_factory.mktemp("net") / "net", folder)


@pytest.fixture
def nets(tmp_path: Path, net: Path) -> Path:
    """A folder with the net ``lines``."""
    shutil.copytree(net, tmp_path / "nets" / "lines")
    return tmp_path / "nets"


@pytest.fixture
def engine(folder: Path, nets: Path, tmp_path: Path) -> Engine:
    family: Any = load_family(folder, dtype=torch.float32, device=torch.device("cpu"))
    family.controlnets.catalogue = catalogue_of(nets, tmp_path / "cache")
    return Engine(family, slots=2)


def change_config(net: Path, **entries: Any) -> None:
    config = json.loads((net / "config.json").read_text())
    (net / "config.json").write_text(json.dumps({**config, **entries}))


def refusal(engine: Engine, *names: str, images: list[np.ndarray[Any, Any]] | None = None) -> JobError:
    wanted = job(0, *names, images=[IMAGE] * len(names))
    with pytest.raises(JobError) as caught:
        prepared(engine, wanted, [IMAGE] * len(names) if images is None else images)
    return caught.value


def test_an_unknown_net_is_refused_with_the_known_ones(engine: Engine) -> None:
    error = refusal(engine, "scribbles")
    assert error.code == "adapter_unknown"
    assert "lines" in str(error)


def test_a_net_without_its_image_is_refused(engine: Engine) -> None:
    assert refusal(engine, "lines", images=[]).code == "input_missing"


def test_a_net_of_another_base_is_refused_with_what_differs(
    engine: Engine, nets: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = make_tiny(tmp_path_factory.mktemp("models") / "sdxl", kind="sdxl")
    make_controlnet(nets / "of_xl", other)
    engine.family.controlnets.catalogue = catalogue_of(nets, tmp_path / "cache")  # type: ignore[attr-defined]
    error = refusal(engine, "of_xl")
    assert error.code == "adapter_mismatch"
    assert "another base" in str(error)
    assert "cross_attention_dim is 96, that of the model 64" in str(error)


@pytest.mark.parametrize(
    ("entries", "code", "words"),
    [
        ({"_class_name": "SD3ControlNetModel"}, "adapter_mismatch", "takes ControlNetModel"),
        ({"_class_name": "ControlNetUnionModel"}, "adapter_mismatch", "ControlNetUnionModel"),
        ({"conditioning_channels": 4}, "adapter_invalid", "conditioning_channels is 4"),
        ({"class_embed_type": "timestep"}, "adapter_invalid", "class_embed_type"),
        ({"conditioning_embedding_out_channels": [16, 32, 64, 256]}, "adapter_invalid", "shape"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    engine: Engine, nets: Path, entries: dict[str, Any], code: str, words: str
) -> None:
    change_config(nets / "lines", **entries)
    error = refusal(engine, "lines")
    assert error.code == code
    assert words in str(error)


def test_a_damaged_file_is_refused(engine: Engine, nets: Path) -> None:
    file = nets / "lines" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    error = refusal(engine, "lines")
    assert error.code == "adapter_invalid"
    assert "missing at its end" in str(error)


def test_a_file_without_a_tensor_is_refused(engine: Engine, nets: Path) -> None:
    file = nets / "lines" / WEIGHTS
    tensors = load_file(file)
    del tensors["controlnet_mid_block.weight"]
    save_file(tensors, file)
    error = refusal(engine, "lines")
    assert error.code == "adapter_invalid"
    assert "controlnet_mid_block.weight" in str(error)


def test_a_single_file_gives_the_image_of_its_folder(engine: Engine, nets: Path, tmp_path: Path) -> None:
    shutil.copy(nets / "lines" / WEIGHTS, nets / "alone.safetensors")
    engine.family.controlnets.catalogue = catalogue_of(nets, tmp_path / "cache")  # type: ignore[attr-defined]
    for index, name in enumerate(("lines", "alone")):
        engine.admit(prepared(engine, job(index, name, images=[IMAGE], seed=7, prompt="x"), [IMAGE]))
    done = run(engine)
    assert pixels(done[0]) == pixels(done[1])


def test_a_model_that_takes_no_nets_refuses_them(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "chroma", kind="chroma")
    family = load_family(folder, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(JobError, match="take no ControlNet") as caught:
        Engine(family, slots=1).prepare(
            job(0, "lines", images=[IMAGE]), inputs=JobInputs(controls=(torch.from_numpy(IMAGE.copy()),))
        )
    assert caught.value.code == "adapter_mismatch"


def test_a_net_without_room_on_the_device_fails_its_own_job(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Engine(engine.family, slots=2)
    alone.admit(job(1, num_inference_steps=6))
    expected = pixels(run(alone)[1])
    controlled = prepared(engine, job(0, "lines", images=[IMAGE]), [IMAGE])
    [hold] = controlled.holds
    [use] = hold._uses  # type: ignore[attr-defined]

    def refuse(device: object) -> None:
        if isinstance(device, torch.device):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.30 GiB")

    monkeypatch.setattr(use.net.module, "to", refuse)
    engine.admit(job(1, num_inference_steps=6))
    engine.step()
    engine.admit(controlled)
    done = run_isolating(engine)
    failed = done[0]
    assert isinstance(failed, Failed)
    assert failed.error.code == "oom"
    assert "ControlNet lines" in str(failed.error)
    assert engine.usable_slots == 2, "others lose no slots"
    assert use.net.users == 0
    assert pixels(done[1]) == expected


def test_nets_leave_memory_in_the_order_of_their_last_use_but_those_in_use_stay(
    engine: Engine, nets: Path, net: Path, tmp_path: Path
) -> None:
    family: Any = engine.family
    for name in ("second", "third"):
        shutil.copytree(net, nets / name)
        # other bytes, so another net
        tensors = load_file(net / WEIGHTS)
        tensors["controlnet_mid_block.bias"] += len(name)
        save_file(tensors, nets / name / WEIGHTS)
    family.controlnets.catalogue = catalogue_of(nets, tmp_path / "cache")
    first = prepared(engine, job(0, "lines", images=[IMAGE]), [IMAGE])
    size = first.holds[0]._uses[0].net.nbytes  # type: ignore[attr-defined]
    family.adapter_modules.max_bytes = 2 * size
    prepared(engine, job(1, "second", images=[IMAGE]), [IMAGE])
    assert family.adapter_modules.on_device == ["ControlNet lines", "ControlNet second"]
    third = prepared(engine, job(2, "third", images=[IMAGE]), [IMAGE])
    # the first is older, but an image waits for it
    assert family.adapter_modules.on_device == ["ControlNet lines", "ControlNet third"]
    engine.admit(first)
    engine.admit(third)
    expected = {at: pixels(result) for at, result in run(engine).items()}
    again = prepared(engine, job(1, "second", images=[IMAGE]), [IMAGE])
    del first, third
    prepared(engine, job(0, "lines", images=[IMAGE]), [IMAGE])
    assert "ControlNet third" not in family.adapter_modules.on_device
    engine.admit(again)
    engine.admit(prepared(engine, job(0, "lines", images=[IMAGE]), [IMAGE]))
    engine.admit(prepared(engine, job(2, "third", images=[IMAGE]), [IMAGE]))
    done = run(engine)
    assert {at: pixels(done[at]) for at in expected} == expected

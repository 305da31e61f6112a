"""LoRA files: what is read, and the errors of what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.engines import make
from tests.support.loras import ATTENTION, CONVOLUTIONS, catalogue_of, changes, damaged, write_kohya, write_peft

from latentfarm.errors import JobError
from latentfarm_worker.adapters.lora.files import Lora, read_lora
from latentfarm_worker.engine.engine import Engine

pytestmark = pytest.mark.unit


def read(path: Path, family: Any) -> Lora:
    return read_lora(path, name="style", pipeline=family.pipeline, config=family.denoising_model.config)


def test_kohyas_and_pefts_names_are_the_same_changes(sdxl: Any, tmp_path: Path) -> None:
    found = changes(sdxl, rank=6, seed=0, ends=CONVOLUTIONS)
    peft = read(write_peft(tmp_path / "peft.safetensors", found), sdxl)
    kohya = read(write_kohya(tmp_path / "kohya.safetensors", found, alpha=3.0), sdxl)
    assert peft.parts.keys() == kohya.parts.keys() == {"unet", "text_encoder", "text_encoder_2"}
    for part, modules in peft.parts.items():
        assert modules.keys() == kohya.parts[part].keys()
        for name, change in modules.items():
            assert torch.equal(change.down, kohya.parts[part][name].down)
            assert torch.allclose(change.up / 2, kohya.parts[part][name].up), (part, name)
    assert peft.rank == 6


def test_pefts_metadata_has_the_alphas(sd1: Any, tmp_path: Path) -> None:
    path = write_peft(tmp_path / "a.safetensors", changes(sd1, rank=4, seed=0, ends=ATTENTION, text=False))
    plain = read(path, sd1).parts["unet"]
    own = next(iter(plain))
    settings = {"unet.lora_alpha": 2, "unet.alpha_pattern": {own: 8}, "unet.r": 4}
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": json.dumps(settings)})
    for name, change in read(path, sd1).parts["unet"].items():
        assert torch.allclose(change.up, plain[name].up * (2.0 if name == own else 0.5))


def _add(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: torch.ones(2)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_add("unet.x.dora_scale"), "is a DoRA"),
        (_add("unet.x.hada_w1_a"), "is a LoHa"),
        (_add("unet.x.lokr_w1"), "is a LoKr"),
        (_add("unet.x.lora_B.bias"), "changes biases"),
        (_add("unet.x.strange"), "does not read"),
        (lambda tensors: tensors.pop(next(key for key in tensors if "lora_B" in key)), "does not read"),
    ],
)
def test_what_is_no_plain_lora_is_refused(
    sd1: Any, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    path = write_peft(tmp_path / "a.safetensors", changes(sd1, rank=4, seed=0, ends=ATTENTION))
    with pytest.raises(JobError, match=message) as caught:
        read(damaged(path, change), sd1)
    assert caught.value.code == "adapter_invalid"


def test_a_file_that_is_cut_off_is_refused(sd1: Any, tmp_path: Path) -> None:
    path = write_peft(tmp_path / "a.safetensors", changes(sd1, rank=4, seed=0, ends=ATTENTION))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(JobError, match="cannot be read"):
        read(path, sd1)


def test_a_lora_of_another_base_fails_its_job(sd1: Any, sdxl: Any, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    write_peft(tmp_path / "loras" / "xl.safetensors", changes(sdxl, rank=4, seed=0, ends=ATTENTION))
    sd1.use_catalogue(catalogue_of(tmp_path / "loras", tmp_path))
    with pytest.raises(JobError, match="trained on another base model") as caught:
        Engine(sd1, slots=1).prepare(make(0, loras="xl"))
    assert caught.value.code == "adapter_mismatch"


def test_a_change_of_another_shape_names_both(sd1: Any, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key in sorted(tensors) if "lora_A" in key and "to_q" in key)
        tensors[key] = torch.ones(4, tensors[key].shape[1] + 1)

    path = write_peft(tmp_path / "loras" / "a.safetensors", changes(sd1, rank=4, seed=0, ends=ATTENTION, text=False))
    damaged(path, widen)
    sd1.use_catalogue(catalogue_of(tmp_path / "loras", tmp_path))
    with pytest.raises(JobError, match=r"its change of .*to_q is \d+ x 33, and the weight is \d+ x 32"):
        Engine(sd1, slots=1).prepare(make(0, loras="a"))

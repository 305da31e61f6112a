"""The number of slots: measured by the family's own speed, remembered, and shared by the workers of a machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.chaos.fake_worker import FakeFamily
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from latentfarm.settings import Settings
from latentfarm_worker.calibration import slots
from latentfarm_worker.calibration.slots import autotune_slots, measure
from latentfarm_worker.models.text_encoder import Tensors

pytestmark = pytest.mark.unit


class Device(FakeFamily):
    """A device that takes 10 ms for any call of up to ``wide`` rows, and as much again for each further ``wide``."""

    clock_s = 0.0

    def __init__(self, wide: int, *, memory: int = 10**6) -> None:
        super().__init__("fake", torch.device("cpu"), torch.float32)
        self.wide, self.memory = wide, memory
        self.seen: list[int] = []

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, told: Tensors) -> torch.Tensor:
        del timesteps
        assert len(told["states"]) == len(latents)
        self.seen.append(len(latents))
        if len(latents) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        Device.clock_s += 0.01 * -(-len(latents) // self.wide)
        return torch.zeros_like(latents)


@pytest.fixture(autouse=True)
def _time_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentfarm_worker.calibration.slots.time.process_time", lambda: Device.clock_s)


@pytest.mark.parametrize(("wide", "slots"), [(2, 1), (8, 4), (32, 16)])
def test_the_smallest_number_that_is_as_fast_as_the_best_is_taken(wide: int, slots: int) -> None:
    assert measure(Device(wide)).slots == slots


def test_memory_that_runs_out_ends_the_search(tmp_path: Path) -> None:
    found = autotune_slots(Device(64, memory=8), tmp_path)
    assert (found.slots, max(found.rates)) == (4, 4)


def test_a_device_that_cannot_hold_one_slot_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        measure(Device(8, memory=1))


def test_what_was_measured_is_remembered_for_this_model_and_dtype(tmp_path: Path) -> None:
    first, again, other = Device(8), Device(8), Device(8)
    other.model_digest = "1" * 64
    found, remembered = autotune_slots(first, tmp_path), autotune_slots(again, tmp_path)
    assert (found.slots, found.remembered, again.seen) == (4, False, [])
    assert (remembered.slots, remembered.rates, remembered.remembered) == (4, found.rates, True)
    assert not autotune_slots(other, tmp_path).remembered
    assert len(json.loads((tmp_path / "slots.json").read_text())) == 2


@pytest.mark.parametrize("content", ["", "no json", "[]"])
def test_a_broken_record_is_measured_again(tmp_path: Path, content: str) -> None:
    (tmp_path / "slots.json").write_text(content)
    assert not autotune_slots(Device(8), tmp_path).remembered
    assert autotune_slots(Device(8), tmp_path).remembered


def test_where_nothing_can_be_written_nothing_is_remembered(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").touch()
    assert autotune_slots(Device(8), tmp_path / "file").slots == 4
    assert "LATENTFARM_CACHE_DIR" in caplog.text
    assert slots.FILE not in {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("own", ["", "/a/folder/of/mine"])
def test_what_is_compiled_lies_in_the_workers_cache_unless_its_user_says_where(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentfarm_worker.build import keep_compiled_files

    # what torch itself leaves there when it is imported
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", own or default_cache_dir())
    keep_compiled_files(Settings(cache_dir=tmp_path))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == (own or str(tmp_path / "inductor"))

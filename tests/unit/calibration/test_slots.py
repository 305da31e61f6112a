"""The number of slots: measured on the device, cached, and shared by the workers of a machine."""

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
    """A device that takes 10 ms for each ``wide`` rows of a call, rounded up."""

    clock_s = 0.0

    def __init__(self, wide: int, *, memory: int = 10**6) -> None:
        super().__init__("fake", torch.device("cpu"), torch.float32)
        self.wide, self.memory = wide, memory
        self.seen: list[int] = []

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        del timesteps
        assert len(conditioning["encoder_hidden_states"]) == len(latents)
        self.seen.append(len(latents))
        if len(latents) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        Device.clock_s += 0.01 * -(-len(latents) // self.wide)
        return torch.zeros_like(latents)


@pytest.fixture(autouse=True)
def _use_the_devices_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentfarm_worker.calibration.slots.time.process_time", lambda: Device.clock_s)


@pytest.mark.parametrize(("wide", "slots"), [(2, 1), (8, 4), (32, 16)])
def test_the_smallest_number_that_is_about_as_fast_as_the_best_is_used(wide: int, slots: int) -> None:
    assert measure(Device(wide)).slots == slots


def test_the_search_ends_when_memory_runs_out(tmp_path: Path) -> None:
    found = autotune_slots(Device(64, memory=8), tmp_path)
    assert (found.slots, max(found.rates)) == (4, 4)


def test_a_device_that_cannot_hold_one_slot_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        measure(Device(8, memory=1))


def test_a_measurement_is_cached_by_model(tmp_path: Path) -> None:
    first, again, other = Device(8), Device(8), Device(8)
    other.model_digest = "1" * 64
    found, cached = autotune_slots(first, tmp_path), autotune_slots(again, tmp_path)
    assert (found.slots, found.cached, again.seen) == (4, False, [])
    assert (cached.slots, cached.rates, cached.cached) == (4, found.rates, True)
    assert not autotune_slots(other, tmp_path).cached
    assert len(json.loads((tmp_path / "slots.json").read_text())) == 2


@pytest.mark.parametrize("content", ["", "no json", "[]"])
def test_an_invalid_cache_file_is_measured_again(tmp_path: Path, content: str) -> None:
    (tmp_path / "slots.json").write_text(content)
    assert not autotune_slots(Device(8), tmp_path).cached
    assert autotune_slots(Device(8), tmp_path).cached


def test_without_a_writable_folder_nothing_is_cached(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").touch()
    assert autotune_slots(Device(8), tmp_path / "file").slots == 4
    assert "LATENTFARM_CACHE_DIR" in caplog.text
    assert slots.FILE not in {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("own", ["", "/a/folder/of/mine"])
def test_compiled_files_are_in_the_workers_cache_unless_inductors_own_variable_is_set(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentfarm_worker.build import keep_compiled_files

    # what torch itself leaves there when it is imported
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", own or default_cache_dir())
    keep_compiled_files(Settings(cache_dir=tmp_path))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == (own or str(tmp_path / "inductor"))

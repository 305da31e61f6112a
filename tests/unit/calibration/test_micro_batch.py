"""The rows of a micro-batch: measured on the device, cached, and shared by the workers of a machine."""

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
from latentfarm_worker.calibration.micro_batch import FILE, calibrate, measure
from latentfarm_worker.text_encoders.prompt import Tensors

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
    monkeypatch.setattr("latentfarm_worker.calibration.micro_batch.time.process_time", lambda: Device.clock_s)


@pytest.mark.parametrize(("wide", "rows"), [(2, 2), (8, 8), (32, 16)])
def test_the_smallest_micro_batch_that_is_about_as_fast_as_the_best_is_used(wide: int, rows: int) -> None:
    assert measure(Device(wide)).micro_batch == rows


def test_the_search_ends_when_memory_runs_out(tmp_path: Path) -> None:
    found = calibrate(Device(64, memory=8), tmp_path)
    assert (found.micro_batch, max(found.row_rates), found.decode_group) == (8, 8, 1)


def test_a_device_that_cannot_hold_two_rows_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        measure(Device(8, memory=1))


def test_a_measurement_is_cached_by_model_and_program(tmp_path: Path) -> None:
    first, again, other, compiled = Device(8), Device(8), Device(8), Device(8)
    other.model_digest, compiled.compiled = "1" * 64, True
    found, cached = calibrate(first, tmp_path), calibrate(again, tmp_path)
    assert (found.micro_batch, found.cached, again.seen) == (8, False, [])
    assert (cached.micro_batch, cached.row_rates, cached.cached) == (8, found.row_rates, True)
    assert not calibrate(other, tmp_path).cached
    assert not calibrate(compiled, tmp_path).cached
    assert len(json.loads((tmp_path / FILE).read_text())) == 3


@pytest.mark.parametrize("content", ["", "no json", "[]"])
def test_an_invalid_cache_file_is_measured_again(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert not calibrate(Device(8), tmp_path).cached
    assert calibrate(Device(8), tmp_path).cached


def test_without_a_writable_folder_nothing_is_cached(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").touch()
    assert calibrate(Device(8), tmp_path / "file").micro_batch == 8
    assert "LATENTFARM_CACHE_DIR" in caplog.text
    assert FILE not in {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("own", ["", "/a/folder/of/mine"])
def test_compiled_files_are_in_the_workers_cache_unless_inductors_own_variable_is_set(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentfarm_worker.compilation import keep_compiled_files

    # what torch itself leaves there when it is imported
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", own or default_cache_dir())
    keep_compiled_files(Settings(cache_dir=tmp_path))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == (own or str(tmp_path / "inductor"))

"""The GPU benchmark runs without a GPU, and its models have the published shapes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.bench.gpu import share_of_peak
from tests.bench.gpu_run import WORKLOADS, GpuRun
from tests.bench.render_processes import ModelSource
from tests.conftest import REPOSITORY
from tests.support.full_size import FLUX1, SD15, SD35, SDXL, SMALL_FLUX1, SMALL_SD3, FullSize, count_parameters


@pytest.mark.unit
@pytest.mark.parametrize("model", [SD15, SDXL, SD35, FLUX1, SMALL_SD3, SMALL_FLUX1])
def test_the_models_have_as_many_parameters_as_the_published_ones(model: FullSize) -> None:
    with torch.device("meta"):
        counted = count_parameters(model.models())
    assert {name: counted[name] for name in model.parameters} == model.parameters


@pytest.mark.unit
def test_a_rate_is_compared_with_that_of_the_matrix_product(tmp_path: Path) -> None:
    run = GpuRun(ModelSource(), WORKLOADS["sdxl"], tmp_path, ends=0.0, tiny=False, rounds=1)
    assert share_of_peak(run, 1.2) == []
    run.matmul = 700.0
    [line] = share_of_peak(run, 1.2, 0.45)
    assert (round(line.figure, 3), line.met) == (0.714, True)


@pytest.mark.unit
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_device_the_benchmark_prints_a_message_and_exits() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "no CUDA device" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("part", "labels"),
    [
        ("engine", ("bytes alone", "compiled", "engine alone, micro-batches of 4")),
        ("farm", ("Celery", "compiled", "engine alone", "arriving jobs: p99", "mixed jobs", "start", "one seed")),
    ],
)
@pytest.mark.parametrize("model", ["sd15", "sdxl", "flux1", "sd35"])
def test_the_benchmark_measures_everything_with_a_tiny_model(model: str, part: str, labels: tuple[str, ...]) -> None:
    options = ["--model", model, "--part", part, "--device", "cpu", "--tiny", "--minutes", "25"]
    command = [sys.executable, "-m", "tests.bench.gpu", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert "Left out" not in done.stdout, done.stdout
    figures = re.findall(r"^\| (.+?) \| [\d.,]+", done.stdout, re.MULTILINE)
    for label in labels:
        assert any(label in figure for figure in figures), done.stdout + done.stderr

"""The GPU benchmark runs without a GPU, and its model has the published shapes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from tests.conftest import REPOSITORY
from tests.support import sd15


@pytest.mark.unit
def test_the_model_has_as_many_parameters_as_the_published_one() -> None:
    with torch.device("meta"):
        assert sd15.parameters(sd15.models()) == sd15.PARAMETERS


@pytest.mark.unit
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_device_the_benchmark_prints_a_message_and_exits() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "no CUDA device" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_benchmark_measures_everything_with_a_tiny_model() -> None:
    command = [sys.executable, "-m", "tests.bench.gpu", "--device", "cpu", "--tiny", "--minutes", "25"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert "Left out" not in done.stdout, done.stdout
    figures = re.findall(r"^\| (.+?) \| [\d.,]+", done.stdout, re.MULTILINE)
    for label in ("bytes alone", "Celery", "compiled", "engine alone", "mixed jobs", "start", "one seed"):
        assert any(label in figure for figure in figures), done.stdout + done.stderr

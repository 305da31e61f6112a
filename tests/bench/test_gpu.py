"""The GPU script is known to run before a GPU is at hand, and its model is the published one."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from tests.conftest import REPOSITORY
from tests.support import sd15


@pytest.mark.unit
def test_the_model_has_the_parameters_of_the_published_one() -> None:
    with torch.device("meta"):
        assert sd15.parameters(sd15.models()) == sd15.PARAMETERS


@pytest.mark.unit
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_device_the_script_says_so_and_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "no CUDA device" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_script_runs_through_all_it_measures_with_a_tiny_model() -> None:
    command = [sys.executable, "-m", "tests.bench.gpu", "--device", "cpu", "--tiny", "--minutes", "25"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert "Left out" not in done.stdout, done.stdout
    figures = re.findall(r"^\| (.+?) \| [\d.,]+", done.stdout, re.MULTILINE)
    for what in ("bytes alone", "Celery", "compiled", "engine alone", "mixed jobs", "start", "one seed"):
        assert any(what in figure for figure in figures), done.stdout + done.stderr

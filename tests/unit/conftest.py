from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import JOBS, render_alone, single_thread
from tests.support.tiny import make_tiny

from latentfarm_worker.models import load_family


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    # with tiny convolutions, a second thread costs more than it gains
    with single_thread():
        yield


@pytest.fixture(scope="session", params=["sd1", "sd2", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / request.param, kind=request.param)


@pytest.fixture(scope="session")
def family(model: Path) -> Any:
    return load_family(model, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_tiny(tmp_path_factory.mktemp("models") / "sd1")
    return load_family(folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_tiny(tmp_path_factory.mktemp("models") / "sdxl", kind="sdxl")
    return load_family(folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def loaded_pipeline(model: Path) -> Any:
    from diffusers import DiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = DiffusionPipeline.from_pretrained(model, use_safetensors=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipeline(loaded_pipeline: Any) -> Iterator[Any]:
    """The model's diffusers pipeline; tests may replace its scheduler."""
    scheduler = loaded_pipeline.scheduler
    yield loaded_pipeline
    loaded_pipeline.scheduler = scheduler


@pytest.fixture(scope="module")
def alone(sd1: Any) -> list[bytes]:
    return [render_alone(sd1, job) for job in JOBS]

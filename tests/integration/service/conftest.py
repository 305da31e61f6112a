"""The model of the render loops."""

from __future__ import annotations

import pytest
import torch
from tests.support.tiny import make_tiny

from latentfarm_worker.models import Family, load_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    model = make_tiny(tmp_path_factory.mktemp("model") / "tiny")
    return load_family(model, dtype=torch.float32, device=torch.device("cpu"))

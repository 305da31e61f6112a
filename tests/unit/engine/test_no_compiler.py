"""On a machine without a compiler, a model that is to be compiled runs uncompiled, with one warning."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.support.engines import make, pixels, run
from tests.support.tiny import make_tiny

from latentfarm.settings import Settings
from latentfarm_worker.build import make_engine
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

JOB = make(0, scheduler="euler")


def render(model: Path, cache: Path, *, compiled: bool) -> dict[str, object]:
    """Build an engine and render with it, as a worker does at its start."""
    torch.set_num_threads(1)
    family = load_family(model, dtype=torch.float32, device=torch.device("cpu"))
    engine = make_engine(family, Settings(slots=2, compile=compiled, cache_dir=cache))
    engine.warm_up()
    engine.admit(JOB)
    digest = hashlib.sha256(pixels(run(engine)[0])).hexdigest()
    return {"compiled": family.compiled, "digest": digest}


def test_without_a_compiler_the_model_runs_uncompiled_with_the_same_bytes_and_one_warning(tmp_path: Path) -> None:
    model, cache = make_tiny(tmp_path / "tiny"), tmp_path / "cache"
    made = subprocess.run(
        [sys.executable, "-m", "tests.unit.engine.test_no_compiler", str(model), str(cache)],
        env={**os.environ, "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert json.loads(made.stdout) == render(model, cache, compiled=False)
    warnings = [line for line in made.stderr.splitlines() if "runs uncompiled" in line]
    assert len(warnings) == 1
    assert "install a C compiler" in warnings[0]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(render(Path(sys.argv[1]), Path(sys.argv[2]), compiled=True)))

"""diffusers' pipelines with LoRAs, in a process of its own: what images of jobs with LoRAs are compared with.

They need peft, which needs accelerate, and diffusers loads models in another way where accelerate is installed. So both
are in a folder that only this process reads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tests.support.pipelines import call, config_of, open_pipeline, set_scheduler

from latentfarm.job import Job

REPOSITORY = Path(__file__).resolve().parents[2]
#: made by ``make install``
PACKAGES = REPOSITORY / ".venv" / "peft"


class WithLoras(NamedTuple):
    """A model's folder, its LoRAs by name, and a folder for what the processes exchange."""

    model: Path
    files: Mapping[str, Path]
    folder: Path


def by_peft(models: Sequence[WithLoras], jobs: Sequence[Job]) -> list[dict[int, Any]]:
    """Return for each model the image of each job by its pipeline, int (H, W, 3), by the job's index.

    One process renders for all models: its imports take longer than the images.
    """
    assert PACKAGES.is_dir(), "run make install"
    for _, files, folder in models:
        wanted = {"jobs": [job.model_dump(mode="json") for job in jobs], "files": {n: str(p) for n, p in files.items()}}
        (folder / "wanted.json").write_text(json.dumps(wanted))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PACKAGES), str(REPOSITORY)]),
        "OMP_NUM_THREADS": "1",
    }
    places = [str(place) for model, _, folder in models for place in (model, folder)]
    command = [sys.executable, "-m", "tests.support.peft_pipeline", *places]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = []
    for _, _, folder in models:
        with np.load(folder / "images.npz") as images:
            found.append({int(index): images[index] for index in images})
    return found


def main(model: Path, folder: Path) -> None:
    """Render the jobs of ``wanted.json``."""
    wanted = json.loads((folder / "wanted.json").read_text())
    jobs = [Job.model_validate(fields) for fields in wanted["jobs"]]
    pipe = open_pipeline(model)
    own_config = config_of(pipe)
    # plain jobs first: a pipeline whose LoRAs are off still runs peft's layers
    plain = [job for job in jobs if not job.loras]
    images: dict[str, Any] = {}
    for job in plain:
        set_scheduler(pipe, own_config, job)
        images[str(job.index)] = call(pipe, job)
    for name, file in wanted["files"].items():
        pipe.load_lora_weights(str(Path(file).parent), weight_name=Path(file).name, adapter_name=name)
    for job in jobs:
        if not job.loras:
            continue
        set_scheduler(pipe, own_config, job)
        _use(pipe, job, 0.0)
        images[str(job.index)] = call(pipe, job, callback_on_step_end=partial(_after_step, job))
    np.savez(folder / "images.npz", **images)


def _use(pipe: Any, job: Job, share: float) -> None:
    """Set the scales of the LoRAs that are on at a share of the steps; the others have none, also of the text."""
    pipe.set_adapters([use.name for use in job.loras], [use.scale * (use.start <= share) for use in job.loras])


def _after_step(job: Job, pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    _use(pipe, job, (step + 1) / pipe.num_timesteps)
    return tensors


if __name__ == "__main__":
    for model, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        main(Path(model), Path(folder))

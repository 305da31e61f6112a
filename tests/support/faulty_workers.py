"""Run real workers whose model breaks on demand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import REPOSITORY, until

from latentfarm.settings import Settings

SMALL = {"width": 64, "height": 64, "scheduler": "euler", "num_inference_steps": 2}


class Worker:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def name(self) -> str:
        until(lambda: "] worker " in self.log and " serves " in self.log)
        return self.log.partition(" serves ")[0].rpartition("worker ")[2]

    def met(self, fault: str) -> int:
        """Return how many processes have met a fault."""
        return sum(1 for path in self._log.parent.iterdir() if path.name.startswith(f"{fault}-"))


@contextmanager
def faulty(
    settings: Settings,
    folder: Path,
    environment: dict[str, str],
    *options: str,
    supervised: bool = True,
    within: Sequence[str] = (),
) -> Iterator[Worker]:
    """Run a real worker with a model that breaks on demand.

    ``options`` are the supervisor's; ``within`` is the beginning of the command that starts it.
    """
    folder.mkdir()
    command = [sys.executable, "-m", "tests.support.faulty_worker"]
    if supervised:
        command = [sys.executable, "-m", "latentfarm_worker.supervise.supervisor", *options, "--", *command]
    fixed = {"LATENTFARM_LOG_FORMAT": "text", "FAULTS_SEEN": str(folder)}
    known = {"LATENTFARM_HOUSEKEEPING_INTERVAL_S": "1", "OMP_NUM_THREADS": "1", **fixed}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*within, *command],
            cwd=REPOSITORY,
            stderr=log,
            stdout=log,
            env={**os.environ, **settings.environment(), **known, **environment},
        )
    try:
        yield Worker(process, folder / "log")
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()

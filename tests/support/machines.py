"""Processes with a folder, an environment and a metrics port of their own, as on separate machines."""

from __future__ import annotations

import json
import socket
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.scraping import http_get, scraped

from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings

#: the command that the container images start
LATENTFARM = Path(sys.executable).with_name("latentfarm")


def free_ports(count: int) -> list[int]:
    """Return consecutive free ports."""
    while True:
        with ExitStack() as held, suppress(OSError):
            first = held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for port in range(first + 1, first + count):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            return list(range(first, first + count))


@dataclass
class Machine:
    """A folder, an environment, and the one process that was started in them."""

    child: ManagedProcess
    address: str

    @classmethod
    def start(cls, folder: Path, settings: Settings, port: int, *command: str) -> Machine:
        folder.mkdir()
        address = f"127.0.0.1:{port}"
        environment = {
            **settings.environment(),
            "LATENTFARM_METRICS_ADDRESS": address,
            "LATENTFARM_SERVER_ADDRESS": address,
            "LATENTFARM_CACHE_DIR": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        shell = ["sh", "-c", 'cd "$0" && exec "$@"', str(folder), str(LATENTFARM), *command]
        return cls(ManagedProcess(folder.name, shell, log=folder / "log", env=environment), address)

    @property
    def ready(self) -> bool:
        """Whether /readyz answers 200; while the process starts, the connection is refused."""
        self.child.require_alive()
        try:
            return http_get(self.address, "/readyz")[0] == 200
        except ConnectionRefusedError:
            return False

    @property
    def done(self) -> int:
        """Committed images, from /metrics."""
        return int(scraped(self.address)["latentfarm_images_total", "mini", "done"])

    def lines(self) -> list[dict[str, Any]]:
        """Return the log's lines, all JSON but for two: Celery prints its shutdown past every logger."""
        lines = [line for line in self.child.log.read_text().splitlines() if line]
        return [json.loads(line) for line in lines if line != "worker: Warm shutdown (MainProcess)"]

    def final_counts(self) -> dict[str, dict[str, int]]:
        """Return the last log line of a worker that has ended: its name, and its jobs by outcome."""
        [line] = [line for line in self.lines() if "images" in line]
        return {line["worker"]: line["images"]}

"""The services of compose.yaml as processes of this machine: their own commands, their own environment.

What a network of containers has elsewhere is put in its place: host names become the loopback interface, ports free
ones, and paths folders of the test.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from tests.conftest import until
from tests.deploy.composition import Service, services
from tests.deploy.dockerfiles import DEPLOY
from tests.support.machines import free_ports
from tests.support.scraping import asked

from latentfarm.local.redis_server import find_redis

#: the variables of deploy/.env
PASSWORDS = ("REDIS_PASSWORD", "S3_SECRET_KEY", "GRAFANA_PASSWORD")
#: longer than any `stop_grace_period`
_END_S = 60.0


class Ground(Protocol):
    """Where a service's processes run."""

    def start(self, command: list[str], environment: Mapping[str, str], *, log: Path) -> subprocess.Popen[bytes]:
        """Start a process that stays."""
        ...

    def run(self, command: list[str], environment: Mapping[str, str], stdin: str) -> subprocess.CompletedProcess[str]:
        """Run a process to its end."""
        ...

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Ask a process that stays to end."""
        ...


class Here:
    """This machine, with folders of the test in the place of a container's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # where the packages of this Python are, then Redis, then what sh needs
        path = [str(Path(sys.executable).parent), str(Path(find_redis()).parent), "/usr/bin", "/bin"]
        self._paths = {
            "/opt/latentfarm/healthcheck.py": str(DEPLOY / "healthcheck.py"),
            "/opt/latentfarm/bin:$PATH": os.pathsep.join(path),
            "/var/cache/latentfarm": os.environ["LATENTFARM_CACHE_DIR"],
            "/work": str(folder),
            "/data": str(folder / "pictures"),
        }
        self._path = {"PATH": self._paths["/opt/latentfarm/bin:$PATH"]}
        # the volume that is mounted there makes the bucket
        (folder / "pictures" / "latentfarm").mkdir(parents=True)

    def _here(self, text: str) -> str:
        # in one pass: what was put in may look like a path of a container too
        there = "|".join(map(re.escape, self._paths))
        return re.sub(there, lambda found: self._paths[found[0]], text)

    def _arguments(self, command: list[str], environment: Mapping[str, str]) -> dict[str, object]:
        return {
            "args": [self._here(word) for word in command],
            "env": self._path | {name: self._here(value) for name, value in environment.items()},
            "cwd": self.folder,
        }

    def start(self, command: list[str], environment: Mapping[str, str], *, log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            arguments = self._arguments(command, environment)
            return subprocess.Popen(**arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=out)  # type: ignore[call-overload, no-any-return]

    def run(self, command: list[str], environment: Mapping[str, str], stdin: str) -> subprocess.CompletedProcess[str]:
        arguments = self._arguments(command, environment)
        return subprocess.run(**arguments, input=stdin, capture_output=True, text=True, timeout=240, check=False)  # type: ignore[call-overload, no-any-return]

    def end(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)


@dataclass
class Running:
    """A container, so to speak: what was started for a service."""

    service: Service
    ground: Ground
    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    health: list[str]
    log: Path

    @property
    def metrics_address(self) -> str:
        """Where it tells of itself."""
        return self.environment["LATENTFARM_METRICS_ADDRESS"]

    def ready(self) -> bool:
        """Whether its probe says so; while it is being started nobody answers."""
        self.require_alive()
        try:
            return asked(self.metrics_address, "/readyz")[0] == 200
        except ConnectionRefusedError:
            return False

    def require_alive(self) -> None:
        code = self.process.poll()
        assert code is None, f"{self.service.name} ended with {code}:\n{self.log.read_text()}"

    def healthy(self) -> bool:
        """Run its health check once."""
        self.require_alive()
        return self.ground.run(self.health, self.environment, "").returncode == 0


class Stand:
    """Runs services of compose.yaml; a context manager that ends them as `docker compose stop` does.

    ``grounds`` says where the processes of a service run, by the name of its image; this machine is what is not there.
    """

    def __init__(self, folder: Path, grounds: Mapping[str, Ground] | None = None) -> None:
        self.folder = folder
        # what `make deploy/.env` writes
        self._passwords = {name: secrets.token_hex(24) for name in PASSWORDS}
        self.services = services(self._passwords)
        self._grounds = grounds or {}
        self._here = Here(folder)
        redis, s3 = free_ports(2)
        self._addresses = {
            # the image's listens to the network of the containers
            "port 6379\n": f"port {redis}\nbind 127.0.0.1\n",
            "redis:6379": f"127.0.0.1:{redis}",
            "6379": str(redis),
            "//s3:8080": f"//127.0.0.1:{s3}",
            "127.0.0.1:8080": f"127.0.0.1:{s3}",
            ":8080": f"127.0.0.1:{s3}",
        }
        self._running: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._running:
            if each.process.poll() is None:
                each.process.kill()
                each.process.wait()

    def start(self, name: str) -> Running:
        """Start a container of a service, and wait for those that it depends on."""
        service = self.services[name]
        for needed, how in service.told.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            self._require_healthy(needed)
        environment = self._environment(service)
        command = [self._translated(word) for word in service.command]
        ground = self._ground(service)
        log = self.folder / f"{name}-{len(self._running)}.log"
        process = ground.start(command, environment, log=log)
        health = [self._translated(word) for word in service.health]
        running = Running(service, ground, process, environment, health, log)
        self._running.append(running)
        return running

    def run(self, name: str, *arguments: str, stdin: str = "", **passwords: str) -> subprocess.CompletedProcess[str]:
        """Do what `docker compose run --rm NAME ARGUMENTS` does, perhaps with another password in its `.env`."""
        service = services(self._passwords | passwords)[name]
        command = [*service.image.entrypoint, *arguments]
        return self._ground(service).run(command, self._environment(service), stdin)

    def stop(self, running: Running) -> int:
        """Do what `docker compose stop` does; return the exit code."""
        grace_s = float(running.service.told.get("stop_grace_period", "10s").removesuffix("s"))
        began = time.monotonic()
        running.ground.end(running.process)
        code = running.process.wait(_END_S)
        took_s = time.monotonic() - began
        assert took_s < grace_s, f"{running.service.name} would have been killed: it took {took_s:.1f} s to end"
        return code

    def _ground(self, service: Service) -> Ground:
        return self._grounds.get(service.told["image"], self._here)

    def _require_healthy(self, name: str) -> None:
        [running] = [each for each in self._running if each.service.name == name]
        until(running.healthy, timeout_s=60)

    def _environment(self, service: Service) -> dict[str, str]:
        environment = {name: self._translated(str(value)) for name, value in service.environment.items()}
        if "LATENTFARM_METRICS_ADDRESS" in environment:
            # containers of a service share a port, not an address
            environment["LATENTFARM_METRICS_ADDRESS"] = f"127.0.0.1:{free_ports(1)[0]}"
        return environment

    def _translated(self, text: str) -> str:
        for there, here in self._addresses.items():
            if there in text:
                return text.replace(there, here)
        return text

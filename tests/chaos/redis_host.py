"""Two real Redis servers, a primary and its replica, and what befalls them: refusals, a failover, a switchover."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.support.machines import free_ports

from latentfarm.errors import UnavailableError
from latentfarm.local.process import ManagedProcess
from latentfarm.local.redis_server import find_redis, socket_path

#: the workers and the producer are this user
USER, PASSWORD = "farm", "chaos"
_RIGHTS = ("resetkeys", "~*", "+@all")
#: what the user loses
_LOSSES = ("-@write", "-@scripting")
_START_S, _SYNC_S, _POLL_S = 20.0, 10.0, 0.01


class RedisServer:
    """One server with an append-only file, on a unix socket for clients and a port for its peer."""

    def __init__(self, name: str, folder: Path, port: int) -> None:
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        self._snapshot = self.folder / "dump.rdb"
        self.socket = str(socket_path(self.folder))
        self.port = port
        self.client: Any = redis.Redis(
            unix_socket_path=self.socket, socket_timeout=_SYNC_S, retry=Retry(NoBackoff(), 1)
        )
        self._frozen = False
        self._log = folder.parent / f"{name}.log"
        self._child: ManagedProcess
        self.start()

    @property
    def runs(self) -> bool:
        """Whether the process runs."""
        return self._child.exit_code() is None

    def start(self, primary: RedisServer | None = None) -> None:
        """Start it on what it has, as a replica of ``primary`` if there is one; return when it answers."""
        self._frozen = False
        Path(self.socket).unlink(missing_ok=True)
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "unixsocket": self.socket,
            "unixsocketperm": "700",
            "dir": self.folder.resolve(),
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
            "save": "",
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": "0",
            "repl-diskless-load": "swapdb",
        }
        arguments = [str(text) for key, value in options.items() for text in (f"--{key}", value)]
        if primary is not None:
            arguments += ["--replicaof", "127.0.0.1", str(primary.port)]
        self._child = ManagedProcess(self.folder.name, [find_redis(), *arguments], log=self._log)
        self._wait(self._answers, _START_S, "does not answer")
        self.client.execute_command("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "&*", *_RIGHTS)

    def end(self, *, kill: bool = False) -> None:
        """End it, by SIGTERM or kill -9."""
        if not kill:
            self._child.terminate()
        self._child.wait_or_kill(0 if kill else 20)

    def freeze(self, *, on: bool) -> None:
        """Stop it, or let it go on, and then refuse nothing."""
        self._frozen = on
        os.kill(self._child.pid, signal.SIGSTOP if on else signal.SIGCONT)
        if not on:
            self.allow()

    def follow(self, primary: RedisServer) -> None:
        """Be a replica of ``primary``; return when it has all that the primary has."""
        self.client.replicaof("127.0.0.1", primary.port)
        self.wait_for_sync()

    def wait_for_sync(self) -> None:
        """Return when the link to the primary is up."""
        self._wait(lambda: self.client.info("replication").get("master_link_status") == "up", _SYNC_S, "is no replica")

    def become_primary(self) -> None:
        """Follow no server."""
        self.client.replicaof("NO", "ONE")

    def refuse(self, cause: str, chance: random.Random) -> None:
        """Answer what changes something with ``cause``, until ``allow``."""
        match cause:
            case "OOM":
                self.client.config_set("maxmemory", 1)
            case "NOPERM":
                self.client.execute_command("ACL", "SETUSER", USER, chance.choice(_LOSSES))
            case "MISCONF":
                # a snapshot cannot replace a folder
                if self._snapshot.is_file():
                    self._snapshot.unlink()
                self._snapshot.mkdir(exist_ok=True)
                self.client.config_set("save", "3600 1")
                self._wait(lambda: not self.client.info("persistence")["rdb_bgsave_in_progress"], _SYNC_S, "saves")
                self.client.bgsave()

    def allow(self) -> None:
        """Refuse nothing; one that is frozen is changed once it goes on."""
        if self._frozen:
            return
        self.client.config_set("maxmemory", 0)
        self.client.config_set("save", "")
        if self._snapshot.is_dir():
            self._snapshot.rmdir()
        self.client.execute_command("ACL", "SETUSER", USER, *_RIGHTS)

    def _answers(self) -> bool:
        self._child.require_alive()
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def _wait(self, done: Any, limit_s: float, problem: str) -> None:
        deadline = time.monotonic() + limit_s
        while not done():
            if time.monotonic() > deadline:
                raise UnavailableError(f"{self.folder.name} {problem} after {limit_s:g} s; see {self._log}")
            time.sleep(_POLL_S)


class RedisHost:
    """A primary and its replica. ``url`` and ``socket`` lead to the primary, as a service's address does."""

    def __init__(self, folder: Path, *, replicated: bool = True) -> None:
        folder.mkdir(parents=True)
        self.socket = str(socket_path(folder / "service"))
        Path(self.socket).parent.mkdir(parents=True, exist_ok=True)
        self.url = f"unix://{self.socket}"
        ports = free_ports(2)
        self.primary = RedisServer("redis-a", folder, ports[0])
        self.replica = RedisServer("redis-b", folder, ports[1]) if replicated else None
        self._lead_to_primary()
        if self.replica:
            self.replica.follow(self.primary)

    def start(self) -> None:
        """Start the primary on what it has; return when it answers."""
        self.primary.start()

    def end(self, *, kill: bool = False) -> None:
        """End the primary, by SIGTERM or kill -9."""
        if not kill:
            # a server that cannot save does not end
            self.primary.allow()
        self.primary.end(kill=kill)

    def end_all(self) -> None:
        """Kill both servers."""
        for server in self._servers():
            server.end(kill=True)

    def freeze(self, *, on: bool) -> None:
        """Stop the primary, or let it go on."""
        self.primary.freeze(on=on)

    def refuse(self, cause: str, chance: random.Random) -> None:
        """Have the primary refuse writes."""
        self.primary.refuse(cause, chance)

    def allow(self) -> None:
        """Have no server refuse anything."""
        for server in self._servers():
            if server.runs:
                with suppress(redis.RedisError):
                    server.allow()

    # -- failovers -------------------------------------------------------------------------------------------

    def exchange(self) -> None:
        """Make the replica the primary, and the primary its replica, and lose nothing. The address stays as it is."""
        old, new = self._pair()
        self.allow()
        new.wait_for_sync()
        # the primary counts a replica as online only with its first acknowledgement, up to a second after the sync
        online = lambda: old.client.info("replication").get("slave0", {}).get("state") == "online"  # noqa: E731
        old._wait(online, _SYNC_S, "has no replica")
        old.client.execute_command("FAILOVER", "TO", "127.0.0.1", new.port, "TIMEOUT", 5000)
        old._wait(lambda: old.client.info("replication")["role"] == "slave", _SYNC_S, "is no replica")
        old.wait_for_sync()
        self.primary, self.replica = new, old

    def lead_to_primary(self) -> None:
        """Have the address lead to the primary."""
        self._lead_to_primary()

    def lose_primary(self) -> None:
        """Kill the primary; what its replica has not received is lost."""
        self.allow()
        self._pair()[1].wait_for_sync()
        self.primary.end(kill=True)

    def promote(self) -> None:
        """Make the replica the primary, have the address lead to it, and start the old primary as its replica."""
        old, new = self._pair()
        new.become_primary()
        self.primary, self.replica = new, old
        self._lead_to_primary()

    def restore_replica(self) -> None:
        """Start the replica if it does not run."""
        if self.replica is not None and not self.replica.runs:
            self.replica.start(self.primary)

    def _pair(self) -> tuple[RedisServer, RedisServer]:
        assert self.replica is not None
        return self.primary, self.replica

    def _servers(self) -> list[RedisServer]:
        return [server for server in (self.primary, self.replica) if server is not None]

    def _lead_to_primary(self) -> None:
        draft = Path(f"{self.socket}.new")
        draft.unlink(missing_ok=True)
        draft.symlink_to(self.primary.socket)
        draft.replace(self.socket)

"""Checks that a Redis server can hold the ledger, with one real write that leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from latentfarm.errors import UnavailableError
from latentfarm.ledger.client import LedgerClient
from latentfarm.ledger.records import decode
from latentfarm.ledger.redis_errors import translate_errors

_OLDEST = (6, 2)
#: commands of the probe that only one role needs, as in docs/security/redis-acl.txt
WORKER_COMMANDS = frozenset({"brpop", "hincrbyfloat", "hscan", "zremrangebyscore"})
PRODUCER_COMMANDS = frozenset({"xread", "xrevrange", "zrevrange", "zrevrangebyscore", "zrevrank"})


def check_server(ledger: LedgerClient, *, queue_keys: Iterable[str] = ()) -> str:
    """Check the server, the user's permissions, and that a write works; return a summary.

    Args:
        ledger: the ledger on the server.
        queue_keys: keys outside the ledger that the user must be able to write to; nothing is written.

    Raises:
        UnavailableError: the server cannot be used. The text names the cause and the cure.
    """
    info = _read_info(ledger)
    _check_kind(ledger, info)
    try:
        refused = {decode(name) for name in ledger.run(ledger.scripts.probe)}
        _check_commands(ledger.where, refused)
        for key in queue_keys:
            _check_key(ledger, key)
    except UnavailableError as error:
        details = _details(error.cause, _read_info(ledger))
        raise UnavailableError(f"{error}{details}", cause=error.cause) from error
    _check_eviction(ledger.where, info)
    limits = "".join(
        f"; the user may not {verb}, as it may not run {_listed(refused & commands)}"
        for verb, commands in (("render", WORKER_COMMANDS), ("serve", PRODUCER_COMMANDS))
        if refused & commands
    )
    return f"{_version(info)} at {ledger.where}; writes work; {_memory(info)}{limits}"


def check_reading(ledger: LedgerClient) -> str:
    """Check what the server reports about itself; write nothing. Return a summary.

    Raises:
        UnavailableError: the server cannot be used. The text names the cause and the cure.
    """
    info = _read_info(ledger)
    _check_kind(ledger, info)
    _check_eviction(ledger.where, info)
    replica = "; it is a replica, and only reading works" if info.get("role") == "slave" else ""
    return f"{_version(info)} at {ledger.where}; nothing was written{replica}"


def _read_info(ledger: LedgerClient) -> dict[str, Any]:
    """Return what the server reports about itself; empty if the user may not read that."""
    try:
        with translate_errors(ledger.where):
            return dict(ledger.redis.info())
    except UnavailableError as error:
        if error.cause != "NOPERM":
            raise
        return {}


def _check_kind(ledger: LedgerClient, info: dict[str, Any]) -> None:
    where = ledger.where
    mode = info.get("redis_mode") or info.get("server_mode")
    if mode == "sentinel":
        raise UnavailableError(
            f"Redis at {where} is a Sentinel, which stores nothing; write sentinel://HOST:PORT/SERVICE into "
            "LATENTFARM_REDIS_URL, with all Sentinels and the name of the service that they watch",
            cause="command",
        )
    if mode == "cluster":
        _check_cluster(ledger)
    version = tuple(int(part) for part in str(info.get("redis_version", "6.2")).split(".")[:2])
    if version < _OLDEST:
        raise UnavailableError(
            f"Redis at {where} has version {info['redis_version']}; use Redis 6.2 or newer, or Valkey", cause="command"
        )


def _check_cluster(ledger: LedgerClient) -> None:
    try:
        with translate_errors(ledger.where):
            found: Any = ledger.redis.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
    except UnavailableError as error:
        if error.cause != "NOPERM":
            raise
        # the keys of the ledger and the queue show it
        return
    nodes = int(found["cluster_size"])
    if nodes > 1:
        raise UnavailableError(
            f"Redis at {ledger.where} is of a cluster of {nodes} nodes, and the farm can use only one; use a Redis or "
            "Valkey server without cluster mode, or a cluster of one node",
            cause="CLUSTER",
        )
    if found["cluster_state"] != "ok":
        raise UnavailableError(
            f"Redis at {ledger.where} is of a cluster that is down; repair the cluster, or use a Redis without cluster "
            "mode",
            cause="CLUSTERDOWN",
        )


def _check_commands(where: str, refused: set[str]) -> None:
    missing = refused - WORKER_COMMANDS - PRODUCER_COMMANDS
    if refused & WORKER_COMMANDS and refused & PRODUCER_COMMANDS:
        missing = refused
    if missing:
        raise UnavailableError(
            f"Redis at {where} cannot be used now: its user may not run {_listed(missing)}; give the user the "
            "permissions in docs/security/redis-acl.txt",
            cause="NOPERM",
        )


def _check_key(ledger: LedgerClient, key: str) -> None:
    try:
        with translate_errors(ledger.where):
            # appending nothing creates no key
            ledger.redis.setrange(key, 0, b"")
    except UnavailableError as error:
        # Redis does not name the key
        raise UnavailableError(f"{error}; the key was {key}", cause=error.cause) from error


def _check_eviction(where: str, info: dict[str, Any]) -> None:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise UnavailableError(
            f"Redis at {where} may evict keys at its memory limit, and an evicted key is a lost job: its "
            f"maxmemory-policy is {policy}; set it to noeviction",
            cause="eviction",
        )


def _details(cause: str, info: dict[str, Any]) -> str:
    """Return what the server reports about an outage, as a further part of the sentence."""
    if not info:
        return ""
    with suppress(KeyError):
        if cause == "OOM":
            return f"; {_memory(info)}"
        if cause in {"READONLY", "MASTERDOWN"}:
            link = "up" if info["master_link_status"] == "up" else "down"
            return f"; its primary is {info['master_host']}:{info['master_port']}, and the link to it is {link}"
        if cause == "MISCONF":
            snapshot, file = info["rdb_last_bgsave_status"], info["aof_last_write_status"]
            return f"; last snapshot: {snapshot}, last write to the append-only file: {file}"
    return ""


def _version(info: dict[str, Any]) -> str:
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}" if info else "Redis of unknown version (the user may not run info)"


def _memory(info: dict[str, Any]) -> str:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not info:
        return "memory unknown"
    return f"{_mib(used)} of memory used, " + (f"the limit is {_mib(limit)}" if limit else "without a limit")


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _listed(commands: Iterable[str]) -> str:
    return ", ".join(sorted(commands))

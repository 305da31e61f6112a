"""Loads the Lua scripts in ``scripts/``."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

import redis

from latentfarm.ledger.constants import LUA_CONSTANTS


class Script(Protocol):
    """A registered script: sends EVALSHA, and the source if Redis does not have it yet."""

    def __call__(self, *, keys: list[str], args: list[Any]) -> Any: ...


class Scripts:
    """The ledger's scripts, one attribute each. Each file begins with what its script does."""

    def __init__(self, client: redis.Redis) -> None:
        def load(name: str) -> Script:
            return client.register_script(_source(name))

        self.create_batch = load("create_batch")
        self.append_jobs = load("append_jobs")
        self.pause = load("pause")
        self.resume = load("resume")
        self.cancel = load("cancel")
        self.retry = load("retry")
        self.set_priority = load("set_priority")
        self.mark_deleting = load("mark_deleting")
        self.delete_batch = load("delete_batch")
        self.lease = load("lease")
        self.renew = load("renew")
        self.commit = load("commit")
        self.fail = load("fail")
        self.release = load("release")
        self.crash = load("crash")
        self.expire_leases = load("expire_leases")
        self.heartbeat = load("heartbeat")
        self.probe = load("probe")
        self.flush_claim = load("flush_claim")
        self.flush_postpone = load("flush_postpone")
        self.drop_flushed = load("drop_flushed")
        self.orphans_claim = load("orphans_claim")
        self.orphans_resolve = load("orphans_resolve")
        self.webhook_claim = load("webhook_claim")
        self.webhook_resolve = load("webhook_resolve")
        self.restore_begin = load("restore_begin")
        self.restore_part = load("restore_part")
        self.restore_end = load("restore_end")


@cache
def _source(name: str) -> str:
    """Return a script with the constants and the shared functions in front of it."""
    folder = files("latentfarm.ledger") / "scripts"
    # a JSON text or number is one of Lua too
    constants = "\n".join(f"local {key} = {json.dumps(value)}" for key, value in LUA_CONSTANTS.items())
    return "\n".join([constants, (folder / "_common.lua").read_text(), (folder / f"{name}.lua").read_text()])

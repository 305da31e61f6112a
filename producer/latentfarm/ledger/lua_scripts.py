"""The ledger's Lua scripts, loaded from the files beside this one."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Protocol

import redis


class Script(Protocol):
    """A registered script: EVALSHA with the arguments, loading the source where Redis does not know it yet."""

    def __call__(self, *, args: list[Any]) -> Any:
        """Run it."""


class Scripts:
    """The ledger's scripts, one attribute each; what a script does stands at the head of its file."""

    def __init__(self, client: redis.Redis) -> None:
        folder = files("latentfarm.ledger") / "scripts"
        common = (folder / "_common.lua").read_text()

        def load(name: str) -> Script:
            return client.register_script(common + (folder / f"{name}.lua").read_text())

        self.create_batch = load("create_batch")
        self.append_jobs = load("append_jobs")
        self.lease = load("lease")
        self.renew = load("renew")
        self.commit = load("commit")
        self.fail = load("fail")
        self.release = load("release")
        self.expire_leases = load("expire_leases")
        self.drop_flushed = load("drop_flushed")
        self.note = load("note")
        self.leftovers = load("leftovers")
        self.tidied = load("tidied")
        self.heartbeat = load("heartbeat")
        self.count_pending = load("count_pending")
        self.pause = load("pause")
        self.resume = load("resume")
        self.cancel = load("cancel")
        self.retry = load("retry")
        self.set_priority = load("set_priority")
        self.mark_deleting = load("mark_deleting")
        self.delete_batch = load("delete_batch")
        self.restore_begin = load("restore_begin")
        self.restore_part = load("restore_part")
        self.restore_end = load("restore_end")

"""Loads the Lua scripts in ``scripts/``."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

import redis

from latentfarm.ledger.constants import LUA_CONSTANTS

#: a shared function, of one line or of several
_FUNCTION = re.compile(r"^local function (?P<name>\w+)\(.*(?: end\n|\n(?:(?: .*)?\n)*end\n)", re.MULTILINE)
_CAPITALS = re.compile(r"\b[A-Z][A-Z_]+\b")
_CONSTANTS = {name: json.dumps(value) for name, value in LUA_CONSTANTS.items()}
#: the check of the schema, which every script begins with
_CHECK = re.compile(r"^do\n(?:.*\n)*?end\n", re.MULTILINE)


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
        self.finish = load("finish")
        self.discard = load("discard")
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
        self.sign_off = load("sign_off")
        self.request_drain = load("request_drain")
        self.probe = load("probe")
        self.flush_claim = load("flush_claim")
        self.flush_postpone = load("flush_postpone")
        self.drop_flushed = load("drop_flushed")
        self.orphans_claim = load("orphans_claim")
        self.orphans_resolve = load("orphans_resolve")
        self.expired_claim = load("expired_claim")
        self.deletion_claim = load("deletion_claim")
        self.submission_queue = load("submission_queue")
        self.submission_claim = load("submission_claim")
        self.submission_extend = load("submission_extend")
        self.submission_resolve = load("submission_resolve")
        self.webhook_claim = load("webhook_claim")
        self.webhook_resolve = load("webhook_resolve")
        self.restore_begin = load("restore_begin")
        self.restore_part = load("restore_part")
        self.restore_end = load("restore_end")


@cache
def _source(name: str) -> str:
    """Return a script with the shared functions that it uses in front of it, and with the values of constants.

    Redis runs the whole text at every call, and to create fifty functions takes longer than many a script.
    """
    shared = _read("_common") + _read("_transitions")
    source = _read(name)
    # a function uses only those before it
    for definition in reversed(list(_FUNCTION.finditer(shared))):
        if _uses(source, definition["name"]):
            source = definition[0] + source
    [check] = _CHECK.findall(shared)
    # a JSON text or number is one of Lua too
    return _CAPITALS.sub(lambda name: _CONSTANTS.get(name[0], name[0]), check + source)


def _read(name: str) -> str:
    return (files("latentfarm.ledger") / "scripts" / f"{name}.lua").read_text()


def _uses(source: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", source) is not None

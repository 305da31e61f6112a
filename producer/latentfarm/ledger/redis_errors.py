"""Translates errors of Redis into those of latentfarm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from latentfarm.errors import SchemaError, UnavailableError
from latentfarm.sentinel import PrimaryNotFoundError

#: first word of the scripts' error if the ledger has another schema
_OTHER_SCHEMA = "LFSCHEMA"

#: the causes of an outage that are answers of Redis, each with what is wrong and the cure
_ANSWERS = {
    "OOM": (
        "it has reached its memory limit and refuses writes",
        "raise maxmemory, or delete batches that are no longer needed",
    ),
    "READONLY": (
        "it is a read-only replica",
        "wait for the failover to end, or correct LATENTFARM_REDIS_URL so that it leads to the primary",
    ),
    "MISCONF": (
        "it cannot save its data to disk, and refuses writes meanwhile",
        "free or repair the disk of the Redis server; its log has the reason",
    ),
    "NOPERM": (
        "its user may not run a command that the farm needs",
        "use the user of the right role, such as a producer to cancel and delete, or give the user the permissions in "
        "docs/security/redis-acl.txt",
    ),
    "AUTH": (
        "it refuses the user or the password",
        "correct the user and the password in LATENTFARM_REDIS_URL, each of : / ? # @ % [ ] percent-encoded",
    ),
    "LOADING": ("it is still loading its data", "wait until it has loaded them"),
    "BUSY": ("it has been running one script for long", "end the script with SCRIPT KILL if it is not the farm's"),
    "MASTERDOWN": ("it is a replica without its primary", "wait for the failover to end, or repair the replication"),
    "NOREPLICAS": (
        "it has fewer replicas than min-replicas-to-write and refuses writes",
        "repair the replicas, or lower min-replicas-to-write",
    ),
    "UNBLOCKED": ("it has become a replica", "wait for the failover to end"),
    "CLUSTERDOWN": ("its cluster is down", "repair the cluster, or use a Redis without cluster mode"),
    "TRYAGAIN": ("its cluster is moving data", "wait, or use a Redis without cluster mode"),
    "CLUSTER": (
        "it is a cluster of several nodes, which the farm cannot use",
        "use a Redis or Valkey server without cluster mode, or a cluster of one node",
    ),
    "protocol": (
        "the server there does not speak the protocol of Redis",
        "correct host and port in LATENTFARM_REDIS_URL; a port with TLS needs rediss://",
    ),
    "database": (
        "it has no database of this number",
        "correct the number at the end of LATENTFARM_REDIS_URL, or leave it out for database 0",
    ),
    "command": (
        "it does not know a command that the farm needs",
        "use Redis 6.2 or newer, or Valkey. For the port of a Sentinel, often 26379, write sentinel://HOST:PORT/SERVICE",
    ),
}
#: parts of an error without an answer, and the cure; the first that fits
_CURES = (
    ("AF_UNIX path too long", "move the socket to a shorter path"),
    ("CERTIFICATE_VERIFY_FAILED", "name its CA with ?ssl_ca_certs=/path/ca.pem, and the host as the certificate does"),
    ("[X509", "the file that ssl_ca_certs names contains no certificate"),
    ("[SSL: WRONG_VERSION", "the port does not speak TLS; write redis:// instead of rediss://"),
    ("[SSL", "correct the options for TLS in LATENTFARM_REDIS_URL"),
    ("max number of clients", "raise maxclients of the Redis server, or end other clients"),
    ("Permission denied", "give this user access to the socket"),
)
_CURES_BY_SCHEME = {
    "unix": (("", "start it, or correct the path in LATENTFARM_REDIS_URL"),),
    "rediss": (
        ("No such file", "correct the paths of the files for TLS in LATENTFARM_REDIS_URL"),
        ("Timeout connecting", "correct host and port in LATENTFARM_REDIS_URL; a port without TLS needs redis://"),
    ),
    "redis": (
        ("refused", "start it, or correct host and port in LATENTFARM_REDIS_URL"),
        ("reset by peer", "correct host and port in LATENTFARM_REDIS_URL; a port with TLS needs rediss://"),
        ("closed by server", "correct host and port in LATENTFARM_REDIS_URL; a port with TLS needs rediss://"),
        ("", "correct host and port in LATENTFARM_REDIS_URL, or repair the network"),
    ),
}
#: every cause of an outage: what a label of metrics may be
CAUSES = ("connection", "timeout", "sentinel", *_ANSWERS)

#: errors that redis-py recognizes; subclasses first
_CLASSES: tuple[tuple[type[Exception], str], ...] = (
    (redis.exceptions.BusyLoadingError, "LOADING"),
    (redis.AuthenticationError, "AUTH"),
    (redis.exceptions.AuthorizationError, "AUTH"),
    (redis.TimeoutError, "timeout"),
    (PrimaryNotFoundError, "sentinel"),
    (redis.ConnectionError, "connection"),
    (redis.exceptions.OutOfMemoryError, "OOM"),
    (redis.ReadOnlyError, "READONLY"),
    (redis.exceptions.NoPermissionError, "NOPERM"),
    (redis.exceptions.MasterDownError, "MASTERDOWN"),
    (redis.exceptions.ClusterDownError, "CLUSTERDOWN"),
    (redis.exceptions.TryAgainError, "TRYAGAIN"),
    (redis.exceptions.MovedError, "CLUSTER"),
    (redis.exceptions.AskError, "CLUSTER"),
    (redis.exceptions.ClusterCrossSlotError, "CLUSTER"),
    (redis.InvalidResponse, "protocol"),
)
#: the code of an answer, also where Redis 6.2 wraps it: "Error running script (...): @user_script: 12: -OOM ...", and
#: where redis-py does: "Command # 1 (...) of pipeline caused error: BUSY ..."
_CODE = re.compile(r"(?:^|: -?)([A-Z]{3,}) ")
#: what Redis 6.2 puts before the error of a script's command
_SCRIPT_PLACE = re.compile(r"^.*@user_script: ?\d+: -?")
#: answers whose first word is not their code
_TEXTS = (
    (
        re.compile(
            r"can't (?:run this command|access at least one of the keys|publish to the channel)|ACL failure in script"
        ),
        "NOPERM",
    ),
    (re.compile(r"non local key in a cluster node"), "CLUSTER"),
    (re.compile(r"DB index is out of range|SELECT is not allowed in cluster mode"), "database"),
    (re.compile(r"(?:^|: )(?:ERR )?unknown command"), "command"),
)


def outage_cause(error: BaseException) -> str | None:
    """Return the cause of the outage that an error of redis-py reports; None if it reports another fault."""
    if isinstance(error, redis.RedisError):
        if type(error) is redis.ConnectionError and isinstance(error.__context__, redis.ReadOnlyError):
            # redis-py's word for the answer of a former primary that a Sentinel named
            return "READONLY"
        for kind, cause in _CLASSES:
            if isinstance(error, kind):
                return cause
    if not isinstance(error, redis.ResponseError):
        return None
    text = str(error)
    for code in _CODE.findall(text):
        if code in _ANSWERS:
            return str(code)
    return next((cause for pattern, cause in _TEXTS if pattern.search(text)), None)


def outage(where: str, error: BaseException) -> UnavailableError | None:
    """Return the error of latentfarm for an outage of the Redis at ``where``; None if the error is no outage."""
    cause = outage_cause(error)
    if cause is None:
        return None
    if cause not in _ANSWERS:
        text = str(error).rstrip(".")
        # the text of a search for the primary has cures
        cure = "" if cause == "sentinel" else f"; {_cure_of(where, text)}"
        return UnavailableError(f"Redis at {where} is unavailable: {text}{cure}", cause=cause)
    problem, cure = _ANSWERS[cause]
    answer = _SCRIPT_PLACE.sub("", str(error))
    return UnavailableError(f"Redis at {where} cannot be used now: {problem}; {cure} (Redis: {answer})", cause=cause)


def _cure_of(where: str, text: str) -> str:
    """Return how to repair a connection that failed without an answer."""
    scheme = where.partition("://")[0]
    cures = (*_CURES, *_CURES_BY_SCHEME.get(scheme, ()), *_CURES_BY_SCHEME["redis"])
    return next(cure for part, cure in cures if part in text)


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """Raise ``UnavailableError`` for an outage of the Redis at ``where``, ``SchemaError`` for another schema.

    An outage is also a server that answers and refuses what the farm needs, such as one at its memory limit.
    """
    try:
        yield
    except redis.RedisError as error:
        name, _, versions = str(error).partition(" ")
        if name == _OTHER_SCHEMA:
            theirs, _, ours = versions.partition(" ")
            raise SchemaError(where, theirs=theirs, ours=ours) from None
        unavailable = outage(where, error)
        if unavailable is None:
            raise
        raise unavailable from error

"""Answers of Redis, as its versions word them, and the cause that each becomes."""

from __future__ import annotations

import pytest
import redis
from redis._parsers.base import BaseParser

from latentfarm.errors import SchemaError, UnavailableError
from latentfarm.ledger.redis_errors import CAUSES, outage_cause, translate_errors

pytestmark = pytest.mark.unit

#: an answer of the server, and its cause
ANSWERS = [
    ("OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
    (
        "ERR Error running script (call to f_979c): @user_script:12: @user_script: 12: "
        "-OOM command not allowed when used memory > 'maxmemory'.",
        "OOM",
    ),
    ("READONLY You can't write against a read only replica.", "READONLY"),
    (
        "ERR Error running script (call to f_979c): @user_script:12: @user_script: 12: "
        "-READONLY You can't write against a read only replica.",
        "READONLY",
    ),
    ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", "MISCONF"),
    ("MISCONF Errors writing to the AOF file: No space left on device", "MISCONF"),
    ("NOPERM this user has no permissions to run the 'set' command or its subcommand", "NOPERM"),
    ("NOPERM No permissions to access a key", "NOPERM"),
    (
        "ERR Error running script (call to f_979c): @user_script:12: @user_script: 12: "
        "The user executing the script can't run this command or subcommand",
        "NOPERM",
    ),
    ("ERR ACL failure in script: User farm has no permissions to run the 'hset' command", "NOPERM"),
    ("NOAUTH Authentication required.", "AUTH"),
    ("WRONGPASS invalid username-password pair or user is disabled.", "AUTH"),
    ("LOADING Redis is loading the dataset in memory", "LOADING"),
    ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", "BUSY"),
    ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "MASTERDOWN"),
    ("NOREPLICAS Not enough good replicas to write.", "NOREPLICAS"),
    ("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)", "UNBLOCKED"),
    ("CLUSTERDOWN The cluster is down", "CLUSTERDOWN"),
    ("TRYAGAIN Multiple keys request during rehashing of slot", "TRYAGAIN"),
    ("MOVED 3999 127.0.0.1:6381", "CLUSTER"),
    ("CROSSSLOT Keys in request don't hash to the same slot", "CLUSTER"),
    ("ERR DB index is out of range", "database"),
    ("ERR SELECT is not allowed in cluster mode", "database"),
    ("ERR unknown command `EVALSHA`, with args beginning with: `979c`, ", "command"),
    ("ERR unknown command 'EVALSHA', with args beginning with: '979c' ", "command"),
    ("ERR max number of clients reached", "connection"),
]
OTHER_FAULTS = [
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "ERR Error running script (call to f_979c): @user_script:12: attempt to index a nil value",
    "BUSYGROUP Consumer Group name already exists",
    "NOSCRIPT No matching script. Please use EVAL.",
]


def error_of(answer: str) -> Exception:
    """Return the error that redis-py raises for an answer."""
    return BaseParser.parse_error(answer)  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.parametrize(("answer", "cause"), ANSWERS)
def test_an_answer_that_redis_cannot_help_is_an_outage_with_its_cause_and_cure(answer: str, cause: str) -> None:
    error = error_of(answer)
    assert outage_cause(error) == cause
    with pytest.raises(UnavailableError) as caught, translate_errors("redis://farm"):
        raise error
    assert caught.value.cause == cause
    assert cause in CAUSES
    text = str(caught.value)
    assert text.startswith("Redis at redis://farm ")
    # a user can do nothing with the place within a script
    assert "user_script" not in text
    assert cause == "connection" or "; " in text


@pytest.mark.parametrize(("answer", "cause"), [case for case in ANSWERS if case[1] != "connection"])
def test_an_answer_to_a_pipeline_has_the_same_cause(answer: str, cause: str) -> None:
    error = error_of(answer)
    # as redis-py does
    error.args = (f"Command # 1 (HGETALL {{lf}}:leases) of pipeline caused error: {error.args[0]}", *error.args[1:])
    assert outage_cause(error) == cause


@pytest.mark.parametrize("answer", OTHER_FAULTS)
def test_any_other_answer_is_a_fault_of_the_program(answer: str) -> None:
    error = error_of(answer)
    assert outage_cause(error) is None
    with pytest.raises(redis.ResponseError) as caught, translate_errors("redis://farm"):
        raise error
    assert caught.value is error


def test_an_error_without_an_answer_is_an_outage() -> None:
    for error, cause in [
        (redis.ConnectionError("Connection refused"), "connection"),
        (redis.TimeoutError("Timeout reading from socket"), "timeout"),
        (redis.InvalidResponse("Protocol error, got 'H' as reply type byte"), "protocol"),
    ]:
        with pytest.raises(UnavailableError) as caught, translate_errors("redis://farm"):
            raise error
        assert caught.value.cause == cause


def test_another_schema_is_no_outage() -> None:
    expected = pytest.raises(SchemaError, match="has schema 1, and this version of latentfarm needs schema 3")
    with expected, translate_errors("redis://farm"):
        raise redis.ResponseError("LFSCHEMA 1 3")


def test_an_unavailable_store_has_a_cause_by_default() -> None:
    assert UnavailableError("no").cause == "unavailable"

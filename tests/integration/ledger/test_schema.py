"""An upgrade while batches exist: a ledger of another schema is refused, and rebuilt from the bucket."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conftest import Command

from latentfarm import Farm
from latentfarm.errors import SchemaError
from latentfarm.ledger.constants import OLD_SCHEMA_KEY, SCHEMA, SCHEMA_KEY
from latentfarm.settings import Settings

pytestmark = pytest.mark.integration

REFUSED = r"has schema [346], and this version of latentfarm needs schema 5\. .*run `latentfarm recover`"


@pytest.fixture(params=["3", "4", "6"])
def old(request: pytest.FixtureRequest, farm: Farm) -> Farm:
    """A farm whose ledger another version wrote: schema 3, with its names of keys, schema 4, or a later one."""
    assert SCHEMA == "5"
    farm.submit([{"prompt": "a"}] * 3, batch="cats")
    client: Any = farm.ledger.redis
    # schema 3 refuses the ledger for what it finds in its own key
    assert client.mget(SCHEMA_KEY, OLD_SCHEMA_KEY) == [b"5", b"5"]
    if request.param != "3":
        client.mset({SCHEMA_KEY: request.param, OLD_SCHEMA_KEY: request.param})
        return farm
    for key in client.keys("{lf}:*"):
        client.rename(key, key.replace(b"{lf}", b"lf"))
    client.set(OLD_SCHEMA_KEY, "3")
    return farm


def test_the_last_batch_leaves_no_version_behind(farm: Farm) -> None:
    farm.submit([{"prompt": "a"}], batch="cats")
    farm.batch("cats").delete()
    assert farm.ledger.redis.keys("*schema") == []


def test_a_ledger_of_another_schema_is_neither_read_nor_changed(old: Farm) -> None:
    before = {key: old.ledger.redis.dump(key) for key in sorted(old.ledger.redis.keys("*"))}
    for use in (
        lambda: old.ledger.lease("mini", "w", 1, lease_s=30),
        lambda: old.ledger.heartbeat("mini", "w"),
        lambda: old.submit([{"prompt": "b"}], batch="dogs"),
        lambda: old.ledger.cancel("cats"),
        old.ledger.expire_leases,
        old.ledger.batches,
        old.ledger.batch_summaries,
        lambda: old.ledger.batch("cats"),
    ):
        with pytest.raises(SchemaError, match=REFUSED):
            use()
    assert {key: old.ledger.redis.dump(key) for key in sorted(old.ledger.redis.keys("*"))} == before


@pytest.mark.parametrize("old", ["4"], indirect=True)
@pytest.mark.parametrize(
    "command", [("pause", "cats"), ("status",), ("status", "cats"), ("recover",), ("worker", "--no-supervisor")]
)
def test_commands_report_the_schema_and_the_cure(
    old: Farm, settings: Settings, latentfarm: Command, command: tuple[str, ...]
) -> None:
    ran = latentfarm(*command, settings=settings)
    assert ran.returncode == 2, ran.stderr
    assert "has schema 4, and this version of latentfarm needs schema 5" in ran.stderr
    assert old.ledger.redis.exists("{lf}:batch:cats")


@pytest.mark.parametrize("old", ["4"], indirect=True)
@pytest.mark.usefixtures("old")
def test_the_doctor_reports_the_schema(settings: Settings, latentfarm: Command) -> None:
    found = latentfarm("doctor", settings=settings).stdout
    assert "BAD  redis   the ledger in Redis" in found


@pytest.mark.parametrize("old", ["4"], indirect=True)
def test_a_batch_of_another_schema_runs_on_after_recover(old: Farm, settings: Settings, latentfarm: Command) -> None:
    old.ledger.redis.flushdb()
    ran = latentfarm("recover", settings=settings)
    assert ran.returncode == 0, ran.stderr
    assert len(old.ledger.lease("mini", "w", 5, lease_s=30)) == 3
    assert old.ledger.redis.get(SCHEMA_KEY) == b"5"

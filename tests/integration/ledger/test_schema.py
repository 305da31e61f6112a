"""An upgrade while batches exist: a ledger of another schema is refused, and rebuilt from the bucket."""

from __future__ import annotations

import pytest
from tests.conftest import Command

from latentfarm import Farm
from latentfarm.errors import SchemaError
from latentfarm.ledger.constants import SCHEMA
from latentfarm.settings import Settings

pytestmark = pytest.mark.integration

REFUSED = r"has schema 1, and this version of latentfarm needs schema 3\. .*run `latentfarm recover`"


@pytest.fixture(params=["written", "from before the schema was written"])
def old(request: pytest.FixtureRequest, farm: Farm) -> Farm:
    """A farm whose ledger has schema 1."""
    assert SCHEMA == "3"
    farm.submit([{"prompt": "a"}] * 3, batch="cats")
    assert farm.ledger.redis.get("lf:schema") == b"3"
    if request.param == "written":
        farm.ledger.redis.set("lf:schema", "1")
    else:
        farm.ledger.redis.delete("lf:schema")
    return farm


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


@pytest.mark.parametrize("old", ["written"], indirect=True)
@pytest.mark.parametrize(
    "command", [("pause", "cats"), ("status",), ("status", "cats"), ("recover",), ("worker", "--no-supervisor")]
)
def test_commands_report_the_schema_and_the_cure(
    old: Farm, settings: Settings, latentfarm: Command, command: tuple[str, ...]
) -> None:
    ran = latentfarm(*command, settings=settings)
    assert ran.returncode == 2, ran.stderr
    assert "has schema 1, and this version of latentfarm needs schema 3" in ran.stderr
    assert old.ledger.redis.exists("lf:batch:cats")


@pytest.mark.parametrize("old", ["written"], indirect=True)
@pytest.mark.usefixtures("old")
def test_the_doctor_reports_the_schema(settings: Settings, latentfarm: Command) -> None:
    found = latentfarm("doctor", settings=settings).stdout
    assert "BAD  redis   the ledger in Redis" in found


@pytest.mark.parametrize("old", ["written"], indirect=True)
def test_a_batch_of_another_schema_runs_on_after_recover(old: Farm, settings: Settings, latentfarm: Command) -> None:
    old.ledger.redis.flushdb()
    ran = latentfarm("recover", settings=settings)
    assert ran.returncode == 0, ran.stderr
    assert len(old.ledger.lease("mini", "w", 5, lease_s=30)) == 3
    assert old.ledger.redis.get("lf:schema") == b"3"

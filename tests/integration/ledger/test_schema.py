"""An upgrade while batches run: a ledger of another layout is left alone, and rebuilt from the bucket."""

from __future__ import annotations

import pytest
from tests.conftest import Command

from latentfarm import Farm
from latentfarm.errors import SchemaError
from latentfarm.settings import Settings

pytestmark = pytest.mark.integration


def written_by_another_version(farm: Farm) -> None:
    farm.submit([{"prompt": "a"}] * 3, batch="cats")
    assert farm.ledger.redis.get("lf:schema") == b"1"
    farm.ledger.redis.set("lf:schema", "2")


def test_a_ledger_of_another_layout_is_neither_leased_from_nor_written(farm: Farm) -> None:
    written_by_another_version(farm)
    before = {key: farm.ledger.redis.dump(key) for key in sorted(farm.ledger.redis.keys("*"))}
    for use in (
        lambda: farm.ledger.lease("mini", "w", 1, lease_s=30),
        lambda: farm.ledger.heartbeat("mini", "w"),
        lambda: farm.submit([{"prompt": "b"}], batch="dogs"),
        lambda: farm.ledger.cancel("cats"),
        farm.ledger.expire_leases,
    ):
        with pytest.raises(SchemaError, match=r"has layout 2, this latentfarm knows 1.*latentfarm recover"):
            use()
    assert {key: farm.ledger.redis.dump(key) for key in sorted(farm.ledger.redis.keys("*"))} == before


def test_commands_tell_of_it_and_what_to_do(farm: Farm, settings: Settings, latentfarm: Command) -> None:
    written_by_another_version(farm)
    for command in (["pause", "cats"], ["recover"], ["worker", "--no-supervisor"]):
        ran = latentfarm(*command, settings=settings)
        assert ran.returncode == 2, ran.stderr
        assert "has layout 2, this latentfarm knows 1" in ran.stderr
    found = latentfarm("doctor", settings=settings).stdout
    assert "BAD  redis   the ledger in Redis" in found


def test_what_another_version_began_goes_on_after_recover(farm: Farm, settings: Settings, latentfarm: Command) -> None:
    written_by_another_version(farm)
    farm.ledger.redis.flushdb()
    ran = latentfarm("recover", settings=settings)
    assert ran.returncode == 0, ran.stderr
    assert len(farm.ledger.lease("mini", "w", 5, lease_s=30)) == 3
    assert farm.ledger.redis.get("lf:schema") == b"1"


def test_a_ledger_from_before_layouts_were_written_down_is_gone_on_with(farm: Farm) -> None:
    farm.submit([{"prompt": "a"}] * 3, batch="cats")
    farm.ledger.redis.delete("lf:schema")
    assert len(farm.ledger.lease("mini", "w", 1, lease_s=30)) == 1
    farm.submit([{"prompt": "a"}], batch="dogs")
    assert farm.ledger.redis.get("lf:schema") == b"1"

"""Every command as every published user of Redis: it works, or it names the permission and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from tests.support.invocation import invoke
from tests.support.locked_redis import locked_redis
from tests.support.tiny_images import store_draft

from latentfarm import Farm
from latentfarm.ledger import Ledger
from latentfarm.ledger.server_check import check_reading, check_server
from latentfarm.monitoring.exporter import make_registry
from latentfarm.settings import Settings

pytestmark = pytest.mark.integration

PASSWORDS = {user: f"{user}-pass" for user in ("admin", "producer", "worker", "viewer")}
#: each command, and the roles that it refuses
COMMANDS = {
    "status": "",
    "status --all": "",
    "status cats": "",
    "watch ended": "",
    "jobs cats": "",
    "job cats/0": "",
    "workers": "",
    "exporter": "",
    "results ended": "",
    "fetch ended -o out": "",
    "picks ended": "",
    "verify ended": "",
    "wait ended": "",
    "wait drafted": "viewer",
    "drafts drafted": "",
    "finish drafted --indices 0": "viewer",
    "discard drafted --yes": "viewer",
    "doctor": "viewer",
    "retry cats": "",
    "gc cats": "",
    "recover --dry-run": "",
    "recover cats": "viewer",
    "pause cats": "viewer",
    "resume cats": "viewer",
    "pause cats --now": "viewer",
    "set-priority cats 3": "viewer",
    "submit rows.txt --batch more": "viewer",
    "cancel cats": "viewer",
    "delete ended --yes": "viewer",
    "delete cats --yes": "viewer",
}
#: nothing of `ended` was rendered
CODES = {"verify ended": 2, "wait ended": 1}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with locked_redis(tmp_path_factory.mktemp("locked"), PASSWORDS) as found:
        yield found


def as_user(settings: Settings, port: int, user: str) -> Settings:
    return settings.model_copy(update={"redis_url": f"redis://{user}:{PASSWORDS[user]}@127.0.0.1:{port}/0"})


def everything(farm: Farm) -> dict[bytes, object]:
    """Return the ledger's keys with their values."""
    client = farm.ledger.redis
    return {key: client.dump(key) for key in client.scan_iter("{lf}:*")}


@pytest.mark.parametrize("user", ["producer", "worker", "viewer"])
def test_every_command_works_or_names_the_permission_and_changes_nothing(
    user: str, port: int, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.txt").write_text("a cat\n")
    farm, mine = Farm.open(as_user(settings, port, "admin")), as_user(settings, port, user)
    farm.ledger.redis.flushall()
    farm.submit(["a cow", "a calf"], batch="drafted")
    for lease in farm.ledger.lease("mini", "w", 2, lease_s=30):
        farm.ledger.commit([(lease, store_draft(farm, lease))])
    farm.submit(["a cat"], batch="cats")
    farm.submit(["a dog"], batch="ended").cancel()
    for command, refused in COMMANDS.items():
        before = everything(farm)
        if command == "exporter":
            text = generate_latest(make_registry(Ledger.connect(mine.redis_url))).decode()
            assert "latentfarm_ledger_up 1.0" in text
            continue
        if command == "doctor":
            # its check of Redis alone, because that of the model is slow
            assert "nothing was written" in check_reading(Ledger.connect(mine.redis_url))
            if user != "viewer":
                assert "writes work" in check_server(Ledger.connect(mine.redis_url), queue_keys=["render.mini:probe"])
            continue
        code, text = invoke(mine, *command.split())
        if user in refused.split():
            assert code == 3, (command, text)
            assert "its user may not run a command that the farm needs; use the user of the right role" in text
            assert everything(farm) == before, command
        else:
            assert code == CODES.get(command, 0), (command, text)

"""The probe of ``doctor`` knows the commands of the scripts and the permissions of the roles."""

from __future__ import annotations

import re

import pytest
from tests.conftest import REPOSITORY
from tests.unit.ledger.test_lua_scripts import SCRIPTS

from latentfarm.ledger.server_check import PRODUCER_COMMANDS, WORKER_COMMANDS

pytestmark = pytest.mark.unit

PROBED = {command.lower() for command in re.findall(r"\{ '([A-Z]+)'", SCRIPTS["probe"])}


def test_the_probe_runs_every_command_of_the_scripts() -> None:
    called = {command.lower() for script in SCRIPTS.values() for command in re.findall(r"\.p?call\('([A-Z]+)'", script)}
    # a message would reach the workers
    assert called - PROBED == {"publish"}


def test_the_commands_that_one_role_needs_are_those_of_the_published_users() -> None:
    acl = (REPOSITORY / "docs/security/redis-acl.txt").read_text()
    producer, worker = (
        set(re.findall(r"\+([a-z]+)", acl[acl.index(f"user {role} ") :].partition("\n")[0]))
        for role in ("producer", "worker")
    )
    assert PROBED - producer == WORKER_COMMANDS
    assert PROBED - worker == PRODUCER_COMMANDS

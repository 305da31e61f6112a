"""The server's settings come from the environment, and each is in the reference with its default."""

from __future__ import annotations

import re

import pytest
from tests.conftest import REPOSITORY

from latentfarm.errors import InputError
from latentfarm.server.settings import ServerSettings, variables

pytestmark = pytest.mark.unit


def test_a_setting_is_read_from_its_variable_and_an_invalid_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTFARM_SERVER_MAX_CONNECTIONS", "9")
    monkeypatch.setenv("LATENTFARM_API_KEYS_FILE", "/keys")
    assert ServerSettings.load().max_connections == 9
    assert str(ServerSettings.load().api_keys_file) == "/keys"
    assert ServerSettings.load(max_connections=10).max_connections == 10
    monkeypatch.setenv("LATENTFARM_SERVER_MAX_CONNECTIONS", "many")
    with pytest.raises(InputError, match="LATENTFARM_SERVER_MAX_CONNECTIONS is 'many'"):
        ServerSettings.load()
    with pytest.raises(InputError, match=re.escape("LATENTFARM_SERVER_ADDRESS is '7860'; write HOST:PORT")):
        ServerSettings.load(address="7860", max_connections=10)


def test_every_setting_is_in_the_reference_with_its_default() -> None:
    rows = re.findall(r"^\| `(LATENTFARM_\w+)` \|(.*)\|(.*)\|$", _reference(), re.MULTILINE)
    documented = {name: default.strip() for name, _, default in rows}
    missing = [name for name in variables().values() if name not in documented]
    assert missing == []
    for field, name in variables().items():
        default = ServerSettings.model_fields[field].default
        if isinstance(default, int | float):
            assert float(documented[name]) == default, name


def _reference() -> str:
    return (REPOSITORY / "docs" / "reference" / "settings.md").read_text()

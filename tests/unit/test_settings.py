from __future__ import annotations

from pathlib import Path

import pytest

from latentfarm.errors import InputError
from latentfarm.settings import Settings, write_farm_file

pytestmark = pytest.mark.unit


def test_redis_without_a_bucket_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTFARM_REDIS_URL", "redis://localhost")
    with pytest.raises(InputError, match="LATENTFARM_BUCKET is not set"):
        Settings.load(tmp_path)


def test_the_error_for_an_invalid_setting_has_its_name_and_value(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LATENTFARM_LEASE_TTL_S", "soon")
    with pytest.raises(InputError, match="LATENTFARM_LEASE_TTL_S is 'soon'"):
        Settings.load(tmp_path)


def test_a_local_farm_is_found_and_only_its_owner_can_read_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "farm.json"
    write_farm_file(file, Settings().model_copy(update={"redis_url": "unix:///s", "bucket": "b"}))
    assert file.stat().st_mode & 0o777 == 0o600
    found = Settings.load(tmp_path)
    assert (found.redis_url, found.bucket) == ("unix:///s", "b")

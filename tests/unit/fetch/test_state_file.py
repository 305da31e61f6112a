from __future__ import annotations

from pathlib import Path

import pytest

from latentfarm.fetch.state_file import FetchState

pytestmark = pytest.mark.unit


def test_the_state_of_a_fetch_has_each_image_by_its_sha256(tmp_path: Path) -> None:
    with FetchState(tmp_path / "r") as state:
        state.add(1_000_000, "ab" * 32)
    with FetchState(tmp_path / "r") as state:
        found = [state.has(1_000_000, "ab" * 32), state.has(1_000_000, "ac" * 32), state.has(5, "ab" * 32)]
        assert found == [True, False, False]
        assert not state.has(2_000_000, "00" * 32)

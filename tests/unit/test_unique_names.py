from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.unique_names import UniqueNames

pytestmark = pytest.mark.unit


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=3), max_size=300))
def test_names_and_owners_agree_with_a_dictionary(names: list[str]) -> None:
    owners: dict[str, str] = {}
    with UniqueNames() as unique:
        for number, name in enumerate(names):
            assert unique.add(name, f"row {number}") == owners.get(name)
            owners.setdefault(name, f"row {number}")


def test_no_name_is_lost_or_invented_among_many() -> None:
    with UniqueNames() as unique:
        assert all(unique.add(f"row {number}") is None for number in range(60_000))
        assert all(unique.add(f"row {number}") == "" for number in range(60_000))
        assert unique.add("row 60000") is None


def test_a_name_takes_at_most_sixteen_bytes_of_memory_however_long_it_is() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    count = 300_000
    with UniqueNames() as unique:
        before = resident_bytes()
        for number in range(count):
            unique.add(f"{number:0200}")
        assert resident_bytes() - before <= 16 * count

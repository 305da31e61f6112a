from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.storage.part_codec import pack, unpack

pytestmark = pytest.mark.unit


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")), lambda x: st.lists(x, max_size=3)
)


@given(st.lists(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=3), max_size=4))
def test_packed_lines_unpack_to_themselves_and_their_bytes_depend_on_content_only(
    lines: list[dict[str, object]],
) -> None:
    assert unpack(pack(lines)) == lines
    assert pack(lines) == pack(lines)

"""A browser reads the event that was sent, with any data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from latentfarm.server.http.sse import ServerEvent

pytestmark = pytest.mark.unit

WORDS = st.text(alphabet=st.characters(codec="ascii", exclude_characters="\r\n\0 "), min_size=1)


@given(data=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r")), event=WORDS, key=WORDS)
def test_a_client_reads_the_data_that_was_sent(data: str, event: str, key: str) -> None:
    [found] = SSEDecoder().iter_bytes(iter([ServerEvent(data, event, key).encode()]))
    assert (found.data, found.event, found.id) == (data, event, key)


def test_every_line_end_is_one_of_the_data() -> None:
    assert ServerEvent("a\rb\r\nc\nd").encode() == b"data: a\ndata: b\ndata: c\ndata: d\n\n"

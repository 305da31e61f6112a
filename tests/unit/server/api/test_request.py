"""Queries, names in paths and cursors: any text is read or refused with a 4xx."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import Request

from latentfarm.batch_state import BatchState
from latentfarm.server.api.batches import parse_cursor
from latentfarm.server.api.models import BatchesQuery, EventsQuery, ImageQuery, JobsQuery, StatesQuery
from latentfarm.server.api.request import batch_name, job_index, read_query
from latentfarm.server.api.submission import is_key
from latentfarm.server.http.request_error import RequestError

pytestmark = pytest.mark.unit

QUERIES = (BatchesQuery, EventsQuery, ImageQuery, JobsQuery, StatesQuery)
NAMES = sorted({name for model in QUERIES for name in model.model_fields})


def request(query: str = "", **path_params: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "path_params": path_params, "headers": []})


def status_of(read: Callable[..., object], *arguments: object) -> int:
    """Return 200 if the arguments can be read, else the status of the error. Any other exception is raised."""
    try:
        read(*arguments)
    except RequestError as error:
        return error.status
    return 200


@given(
    st.sampled_from(QUERIES),
    st.lists(st.tuples(st.sampled_from(NAMES) | st.text(), st.sampled_from(["1", "open", "true"]) | st.text())),
)
def test_any_query_is_read_or_refused(model: type[BatchesQuery], pairs: list[tuple[str, str]]) -> None:
    assert status_of(read_query, request(urlencode(pairs, errors="replace")), model) in {200, 400}


def test_what_is_repeated_misspelled_or_out_of_range_is_named() -> None:
    assert read_query(request("state=open&state=paused"), BatchesQuery).state == (BatchState.OPEN, BatchState.PAUSED)
    for query, message in (
        ("limit=1&limit=2", "limit is repeated; write it once"),
        ("stat=open", "query parameter stat is not known; did you mean 'state'?"),
        ("limit=0", "query parameter limit '0' is invalid; write greater than or equal to 1"),
        ("owner=" + "x" * 201, "at most 200 characters"),
    ):
        with pytest.raises(RequestError) as refused:
            read_query(request(query), BatchesQuery)
        assert message in refused.value.message


@given(st.text())
@example("9" * 5_000)
@example("٣")
@example("-1")
def test_any_name_in_a_path_is_read_or_not_found(text: str) -> None:
    for read in (batch_name, job_index):
        assert status_of(read, request(name=text, index=text)) in {200, 404}


@given(st.text() | st.from_regex(r"\d{1,20}:[a-z]{1,3}"))
@example("9" * 5_000 + ":a")
@example(":a")
def test_any_cursor_is_read_or_refused(text: str) -> None:
    assert status_of(parse_cursor, text) in {200, 400}


def test_a_key_has_no_empty_segment_and_none_of_dots() -> None:
    assert all(map(is_key, ("a", "prompts/cats.jsonl", "a..b/.c", "ä/b c.txt")))
    wrong = ("", "/a", "a/", "a//b", "../a", "a/../b", "a/..", "./a", "a\nb", "a\0b", "é" * 600)
    assert not any(map(is_key, wrong))

"""A client of the server's events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

#: an event's name and its data
Received = tuple[str, Any]


@contextmanager
def following(client: httpx2.Client, query: str) -> Iterator[Iterator[Received]]:
    """Provide the events of ``GET /api/events`` as they come."""
    with client.stream("GET", f"/api/events?{query}") as answer:
        assert answer.status_code == 200, answer.read()
        yield _events(answer.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[Received]:
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def next_of(events: Iterator[Received], name: str) -> Any:
    """Return the data of the next event of this name; others are passed over."""
    return next(data for found, data in events if found == name)

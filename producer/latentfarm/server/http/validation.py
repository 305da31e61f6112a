"""Describes what pydantic found in a query or a body, with place, value and cure."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import ValidationError

from latentfarm.server.http.request_error import RequestError
from latentfarm.submission.prompts.columns import suggest_field
from latentfarm.submission.prompts.rows import describe_invalid

_MAX_PLACE = 80


def invalid_request(error: ValidationError, *, what: str = "", known: Collection[str] = ()) -> RequestError:
    """Return the answer to a request that does not fit its model: the first error.

    Args:
        error: what pydantic found.
        what: what precedes the place, such as ``query parameter``.
        known: the names that may be there, if there are few.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:_MAX_PLACE]
    named = " ".join(filter(None, (what, place))) or "the body"
    if first["type"] == "extra_forbidden":
        text = f"{named} is not known; {suggest_field(place, known) if known else 'remove it, or correct its name'}"
    elif first["type"] == "missing":
        text = f"{named} is missing; write it"
    else:
        text = f"{named} {describe_invalid(error)}"
    return RequestError(400, "invalid_request", text, param=place or None)

"""Values of an option that is off."""

from __future__ import annotations

#: without case
_OFF = frozenset({"", "false", "no", "off", "none", "null", "0", "0.0", "-1", "[]", "{}", "()"})


def is_off(value: object) -> bool:
    """Return whether an option has a value such as 0, false, none or an empty list."""
    return str(value).strip().lower() in _OFF

"""Cases of a test that are left out of `make test`, since others show nearly the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick(cases: Iterable[str], *, but: Collection[str]) -> list[Any]:
    """Return the cases as parameters; those in ``but`` are marked slow."""
    return [pytest.param(case, marks=pytest.mark.slow) if case in but else pytest.param(case) for case in cases]

"""Names of samplers in other tools."""

from __future__ import annotations

from difflib import get_close_matches
from types import MappingProxyType

#: short names of schedulers by A1111's sampler names in lower case
_SAMPLERS = MappingProxyType(
    {
        "ddim": "ddim",
        "deis": "deis",
        "dpm++ 2m": "dpm++2m",
        "dpm++ 2m karras": "dpm++2m-karras",
        "dpm++ 2m sde": "dpm++2m-sde",
        "dpm++ 2m sde karras": "dpm++2m-sde-karras",
        "dpm2": "kdpm2",
        "dpm2 a": "kdpm2_a",
        "euler": "euler",
        "euler karras": "euler-karras",
        "euler a": "euler_a",
        "heun": "heun",
        "lcm": "lcm",
        "lms": "lms",
        "plms": "pndm",
        "unipc": "unipc",
    }
)


def resolve_sampler(name: str, schedule: str | None = None) -> str:
    """Return the short name of a sampler's scheduler."""
    full = (name if schedule is None else f"{name} {schedule}").lower()
    found = _SAMPLERS.get(full)
    if found is None:
        close = get_close_matches(full, _SAMPLERS, n=1) if len(full) < 60 else []
        cure = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(_SAMPLERS)}"
        raise ValueError(f"is not supported; {cure}")
    return found

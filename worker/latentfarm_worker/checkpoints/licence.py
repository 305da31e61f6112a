"""The licence that a model card states. No torch."""

from __future__ import annotations

import re
from pathlib import Path

#: the front matter of a card: https://huggingface.co/docs/hub/model-cards#model-card-metadata
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_ENTRY = re.compile(r"^(license|license_name):\s*[\"']?([\w.+ -]+?)[\"']?\s*$", re.MULTILINE)
_LIMIT = 65_536


def licence_of_folder(folder: Path) -> str | None:
    """Return the licence in the front matter of ``README.md``, such as ``openrail++``; None if it states none."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            text = file.read(_LIMIT)
    except OSError:
        return None
    front = _FRONT_MATTER.match(text)
    entries = dict(_ENTRY.findall(front[1])) if front else {}
    licence = entries.get("license")
    # of licences that the hub does not know, the card has the name apart
    return entries.get("license_name", licence) if licence == "other" else licence

"""What a fetch has done so far, and in the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentfarm.fetch.contact_sheet import MAX_TILES

RESULTS_FILE = "results.jsonl"


@dataclass
class FetchReport:
    """Counts of a fetch into ``directory``.

    ``downloaded``, ``present`` (there with the right sha256) count files, or shards of a webdataset; ``skipped`` the
    jobs that ``only_new`` passed over; ``size_bytes`` what was downloaded; ``states`` the jobs of ``results.jsonl`` by
    state; ``pictures`` the first files, each with its prompt, as many as a contact sheet shows.
    """

    directory: Path
    downloaded: int = 0
    present: int = 0
    skipped: int = 0
    size_bytes: int = 0
    states: Counter[str] = field(default_factory=Counter)
    pictures: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def results(self) -> Path:
        """The file with a line a job."""
        return self.directory / RESULTS_FILE

    @property
    def jobs(self) -> int:
        """Jobs seen so far."""
        return self.states.total()

    def show(self, file: Path, result: dict[str, Any]) -> None:
        """Keep a picture for the contact sheet, if it still has room."""
        if len(self.pictures) < MAX_TILES:
            self.pictures.append((file, result.get("request", {}).get("prompt", "")))

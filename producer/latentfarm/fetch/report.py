"""The progress and the result of a fetch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS_FILE = "results.jsonl"
CONTACT_SHEET = "contact-sheet.png"
#: images on one contact sheet
MAX_SHEET_IMAGES = 48


@dataclass
class FetchReport:
    """Counts of a fetch into ``directory``.

    Attributes:
        downloaded: files, or shards of a webdataset.
        present: files or shards that were there with the right content.
        skipped: jobs that ``skip_fetched`` skipped.
        size_bytes: bytes downloaded.
        states: jobs in ``results.jsonl`` by state.
        images: the first files with their prompts, as many as a contact sheet has.
        tables: the folder of ``results.jsonl``; None is ``directory``.
    """

    directory: Path
    downloaded: int = 0
    present: int = 0
    skipped: int = 0
    size_bytes: int = 0
    states: Counter[str] = field(default_factory=Counter)
    images: list[tuple[Path, str]] = field(default_factory=list)
    tables: Path | None = None

    @property
    def results(self) -> Path:
        """The file with one line per job."""
        return (self.tables or self.directory) / RESULTS_FILE

    @property
    def jobs(self) -> int:
        """Jobs seen so far."""
        return self.states.total()

    def add_image(self, file: Path, result: dict[str, Any]) -> None:
        """Add an image for the contact sheet, if it has room."""
        if len(self.images) < MAX_SHEET_IMAGES:
            self.images.append((file, result.get("request", {}).get("prompt", "")))

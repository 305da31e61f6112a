"""The options of a fetch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from latentfarm.fetch.names import DEFAULT_TEMPLATE
from latentfarm.image_formats import PNG, format_of
from latentfarm.job_state import JobState

Layout = Literal["files", "webdataset"]
LAYOUTS: tuple[Layout, ...] = ("files", "webdataset")


@dataclass(frozen=True)
class FetchOptions:
    """What is fetched, and how it is stored.

    Attributes:
        layout: ``files``, or ``webdataset`` for tar shards.
        name_template: the template of file names; see ``NameTemplate``.
        skip_fetched: skip images that an earlier fetch into the folder has fetched, even if their files were moved.
        states: include only jobs in these states. Empty: all.
        image_format: include only jobs of this format. None: all.
        drafts: also fetch the previews of drafts, which the finished images replace.
        force: write into the folder of another batch, after its images were removed, and over files of others.
    """

    layout: Layout = "files"
    name_template: str = DEFAULT_TEMPLATE
    skip_fetched: bool = False
    states: Collection[str] = ()
    image_format: str | None = None
    drafts: bool = False
    force: bool = False

    def includes(self, result: dict[str, Any]) -> bool:
        """Return whether a job is in the selected states and of the selected format."""
        in_state = not self.states or result["state"] in self.states
        return in_state and self.image_format in {None, _format_name(result)}

    def has_file(self, result: dict[str, Any]) -> bool:
        """Return whether a job has an image, or a preview, that is fetched."""
        return result["state"] == JobState.DONE.word or (self.drafts and result["state"] == JobState.DRAFTED.word)


def _format_name(result: dict[str, Any]) -> str:
    """Return the format of a job's image: that of the stored image, else the requested one."""
    stored = format_of(result.get("key") or "")
    requested: str = result.get("request", {}).get("image_format", PNG.name)
    return stored.name if stored else requested

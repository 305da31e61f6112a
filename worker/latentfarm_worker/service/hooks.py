"""What a render loop reports to its process."""

from __future__ import annotations

from latentfarm_worker.service.turns import Turn
from latentfarm_worker.supervise.shared_state import SharedState


class UploadHooks:
    """What follows from the end of a job. The base class ignores it."""

    def on_full_part(self) -> None:
        """Handle a part whose last job has ended: its results can be stored."""

    def delete_objects(self, keys: list[str]) -> None:
        """Delete objects that are not needed any more, or that were stored too late: their batch is deleted."""


class WorkerHooks(UploadHooks):
    """Callbacks from a render loop to its process. The base class ignores them."""

    def __init__(self, state: SharedState | None = None) -> None:
        self.state = state or SharedState()

    def notify_workers(self) -> None:
        """Handle jobs that were released: other workers can lease them."""

    def on_device_lost(self) -> None:
        """Handle a device error that this process cannot recover from."""

    def on_urgent(self) -> None:
        """Handle an urgent job: if ``render_all`` does not run, it must be called."""

    def before_step(self, turn: Turn | None) -> None:
        """Have the model's weights on the device. The time that it takes does not count for the turn."""

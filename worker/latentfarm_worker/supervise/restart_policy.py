"""When a worker that ended is started again: exponential backoff, and a limit for a worker that crashes in a loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from latentfarm_worker.supervise.exit_codes import EXIT_UNAVAILABLE


@dataclass
class RestartPolicy:
    """Counts the losses of one worker. Times in seconds."""

    first_pause_s: float = 1.0
    """Pause before the first restart; it doubles with each one."""
    longest_pause_s: float = 60.0
    healthy_s: float = 60.0
    """A worker that ran for longer is restarted after the first pause again."""
    max_losses: int = 3
    """Losses in a row, without an image in between, after which the worker is not restarted."""
    max_suspects: int = 5
    """Different jobs in a row that were lost alone, without an image in between, after which it is not restarted."""
    _losses: int = field(default=0, init=False)
    _suspects: set[str] = field(default_factory=set, init=False)
    _next_pause_s: float = field(default=0.0, init=False)

    def pause_s(self, returncode: int, *, ran_s: float, committed: bool, suspect: str | None = None) -> float | None:
        """Return the pause before the next start, or None if the worker must not be restarted.

        Args:
            returncode: How the worker ended.
            ran_s: Seconds that it ran.
            committed: It committed an image.
            suspect: Name of the only job in the call of the device in which it ended. The worker had warmed up, so the
                loss is that job's; but a device on which five different jobs end so is at fault itself.
        """
        if committed:
            self._losses = 0
            self._suspects.clear()
        # an outage of Redis or of the bucket is no fault of the worker
        if returncode != EXIT_UNAVAILABLE:
            if suspect is None:
                self._losses += 1
            else:
                self._suspects.add(suspect)
        if self._losses >= self.max_losses or len(self._suspects) >= self.max_suspects:
            return None
        if committed or ran_s > self.healthy_s or not self._next_pause_s:
            self._next_pause_s = self.first_pause_s
        pause_s = self._next_pause_s
        self._next_pause_s = min(2 * pause_s, self.longest_pause_s)
        return pause_s

    def describe(self) -> str:
        """Return the losses since the last image in words, for a log line."""
        losses = f"{self._losses} times in a row"
        return f"{losses} and with {len(self._suspects)} different jobs alone" if self._suspects else losses

"""Decisions about the drafts of a run: the real ``latentfarm finish`` and ``discard``, killed and run again."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import redis
from tests.chaos.faults import seeded
from tests.chaos.producer import Plan
from tests.support.fork_server import ForkedProcess, ForkServer

from latentfarm.errors import InputError, UnavailableError
from latentfarm.job_state import JobState
from latentfarm.ledger import Ledger

#: seconds between two polls of the batches
_POLL_S = 1.0
#: so many drafts are worth a command when there are no more faults, for which a command would be cut in pieces
_MANY = 30
_ENTRY = "tests.chaos.fake_worker:run_command"


class Curator:
    """Finishes or discards the drafts of each batch as its plan wants, some at a time.

    A command that fails, or is killed midway, is run again with what is still a draft; now and then it is run again
    though it has ended well, which must change nothing. ``kill_soon`` kills the next command.
    """

    def __init__(
        self, fork_server: ForkServer, folder: Path, env: Mapping[str, str], ledger: Ledger, *, seed: int
    ) -> None:
        self.kills = 0
        #: no more faults: all drafts are ended at once
        self.hurries = False
        #: commands by verb that ended well
        self.commands: Counter[str] = Counter()
        self.violations: list[str] = []
        self._fork_server = fork_server
        self._log = folder / "logs" / "curator.log"
        self._env = env
        self._ledger = ledger
        self._random = seeded(seed)
        self._process: ForkedProcess | None = None
        self._command: list[str] = []
        self._repeats = False
        self._poll_at_s = self._kill_s = 0.0
        self._kills_next = False

    @property
    def busy(self) -> bool:
        """Whether a command runs."""
        return self._process is not None

    def kill_soon(self) -> None:
        """Kill the running command, or the next one, at a random moment."""
        self._kills_next = True

    def tick(self, plans: Sequence[Plan], note: Callable[..., None]) -> None:
        """Check the running command; start the next."""
        now = time.monotonic()
        if self._process is not None:
            self._check(self._process, now, note)
        elif now >= self._poll_at_s:
            self._poll_at_s = now + (_POLL_S / 10 if self.hurries else _POLL_S)
            try:
                self._command = self._next_command(plans)
            except (InputError, UnavailableError, redis.RedisError):
                self._command = []
            if self._command:
                self._begin(now)

    def _check(self, process: ForkedProcess, now: float, note: Callable[..., None]) -> None:
        code, [verb, batch, *_] = process.exit_code(), self._command
        if code is None:
            if self._kills_next and now >= self._kill_s:
                process.send(signal.SIGKILL)
                self.kills += 1
                self._kills_next = False
            return
        self._process = None
        note(verb, batch=batch, code=code)
        # an error of the input: some of them are drafts no longer, because Redis forgot it
        if code not in {0, -signal.SIGKILL, InputError.exit_code, UnavailableError.exit_code}:
            self.violations.append(f"{verb} {batch} ended with exit code {code}; see {self._log}")
        self.commands[verb] += code == 0
        if code == 0 and self._repeats:
            self._begin(now)

    def _next_command(self, plans: Sequence[Plan]) -> list[str]:
        """Return the next command; none if no planned batch has a draft."""
        for plan in self._random.sample(plans, len(plans)):
            record = self._ledger.batch(plan.batch) if plan.drafts else None
            if record is None or not record.drafted:
                continue
            running = record.total - record.done - record.failed - record.cancelled - record.drafted
            if self.hurries and running and record.drafted < _MANY:
                continue
            states = self._ledger.states(plan.batch, 0, record.total)
            drafts = [index for index, state in enumerate(states) if state is JobState.DRAFTED]
            unwanted = [index for index in drafts if index in plan.discarded]
            wanted = [index for index in drafts if index not in plan.discarded]
            discards = bool(unwanted) and (not wanted or self._random.random() < 0.5)
            found = unwanted if discards else wanted
            # half of them, so that others are left for the next command
            count = len(found) if self.hurries else -(-len(found) // 2)
            chosen = ",".join(map(str, sorted(self._random.sample(found, count))))
            return ["discard" if discards else "finish", plan.batch, "--indices", chosen, *(["--yes"] * discards)]
        return []

    def _begin(self, now: float) -> None:
        arguments: dict[str, object] = {"arguments": self._command}
        self._process = self._fork_server.start("curator", _ENTRY, arguments, env=self._env, log=self._log)
        self._kill_s = now + self._random.uniform(0.05, 0.5)
        # once more, and no further
        self._repeats = not self._repeats and self._random.random() < 0.2

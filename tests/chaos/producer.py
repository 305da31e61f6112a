"""The producer of a run: the real ``latentfarm submit``, one batch after another, killed and run again."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.fake_worker import BREAKS, KILLS, LOSES_DEVICE
from tests.chaos.faults import seeded
from tests.support.fork_server import ForkedProcess, ForkServer

from latentfarm.errors import UnavailableError

#: error code of a job whose row is invalid
INVALID_ROW = "invalid_row"

#: steps and scheduler; few, since each worker builds a sampling plan for each
RUNS = ((1, "euler"), (4, "euler"), (16, "dpm++2m"), (200, "euler_a"))
#: how often, relative to others
_WEIGHTS = (10, 10, 10, 1)
#: two rows in this many are drafts, of this share of their steps
_DRAFTS_OF, _DRAFT = 11, 0.5

_RETRY_S = 0.5
_SMALLEST, _LARGEST = 150, 1000
#: one row in this many is invalid, or fails in the worker
_INVALID_EVERY, _FAILING_EVERY = 211, 173
#: first word of a prompt that does harm -> the error code of its job, and its rows of a batch: each costs some starts
#: of a worker
_HARMFUL = {
    BREAKS: ("engine_error", (40, 41, 340)),
    KILLS: ("poison", (75,)),
    LOSES_DEVICE: ("poison", (110,)),
}
#: batches with rows that end workers, of all
_DEADLY_EVERY = 2


@dataclass(frozen=True)
class Plan:
    """A batch to submit, the error codes of its jobs that cannot succeed, and those that become drafts.

    Drafts of an even index are to be finished, the others discarded.
    """

    batch: str
    model: str
    file: Path
    rows: int
    fails: Mapping[int, str]
    drafts: frozenset[int] = frozenset()
    #: those with the most steps
    long: frozenset[int] = frozenset()

    @property
    def discarded(self) -> frozenset[int]:
        """The drafts that are to be discarded."""
        return frozenset(index for index in self.drafts if index % 2)


class Producer:
    """Submits batches, one at a time, each as often as it takes; ``kill_soon`` kills the next submission midway."""

    def __init__(self, fork_server: ForkServer, folder: Path, env: Mapping[str, str], *, seed: int) -> None:
        self.plans: list[Plan] = []
        self.kills = 0
        self.refusals: list[str] = []
        self._fork_server = fork_server
        self._folder = folder
        self._env = env
        self._random = seeded(seed)
        self._queue: list[Plan] = []
        self._process: ForkedProcess | None = None
        self._retry_at_s = self._kill_s = 0.0
        self._kills_next = False

    @property
    def busy(self) -> bool:
        """Whether something is still to be submitted."""
        return bool(self._queue)

    def add(self, model: str, *, rows: int = 0) -> None:
        """Plan another batch, of ``rows`` or of a random size; every job has one of the few numbers of steps.

        Long ones are rare, and run for seconds: what they have done is worth a checkpoint if they are to stop.
        """
        number = len(self.plans)
        count = rows or self._random.randint(_SMALLEST, _LARGEST)
        file, fails, drafts = self._folder / f"batch-{number}.jsonl", dict[int, str](), set[int]()
        long = set[int]()
        with file.open("w") as out:
            for index in range(count):
                # the steps of mini take longer
                kinds = len(RUNS) - (model == "mini")
                [(steps, scheduler)] = self._random.choices(RUNS[:kinds], _WEIGHTS[:kinds])
                row: dict[str, object] = {"prompt": f"a red circle {number} {index}", "guidance_scale": 1.0}
                row |= {"num_inference_steps": steps, "scheduler": scheduler}
                if model != "mini" and index % _INVALID_EVERY == _INVALID_EVERY - 1:
                    row["width"], fails[index] = 1030, INVALID_ROW
                elif model != "mini" and index % _FAILING_EVERY == _FAILING_EVERY - 1:
                    row["scheduler_options"], fails[index] = {"no_such_option": 1}, "scheduler"
                elif model != "mini" and (word := _harm_at(number, index)):
                    row["prompt"], fails[index] = f"{word} {number} {index}", _HARMFUL[word][0]
                elif steps > 1 and index % _DRAFTS_OF in {1, 4}:
                    row["draft"] = _DRAFT
                    drafts.add(index)
                if steps == RUNS[-1][0] and index not in fails:
                    long.add(index)
                out.write(json.dumps(row) + "\n")
        plan = Plan(f"batch-{number}", model, file, count, fails, frozenset(drafts), frozenset(long))
        self.plans.append(plan)
        self._queue.append(plan)

    def kill_soon(self) -> None:
        """Kill the running submission, or the next one, at a random moment."""
        self._kills_next = True
        self._kill_s = time.monotonic() + self._random.uniform(0, 0.6)

    def tick(self, note: Callable[..., None]) -> None:
        """Check the running submission; start the next."""
        now = time.monotonic()
        if self._process is None:
            if self._queue and now >= self._retry_at_s:
                self._begin(self._queue[0], now)
        elif (code := self._process.exit_code()) is not None:
            self._process = None
            # 1: some rows are invalid, and the others are submitted
            if code in {0, 1}:
                note("submitted", batch=self._queue.pop(0).batch)
            else:
                note("submission ended", batch=self._queue[0].batch, code=code)
                if code > 0 and code != UnavailableError.exit_code:
                    self.refusals.append(f"{self._queue[0].batch}: exit code {code}")
                self._retry_at_s = now + _RETRY_S
        elif self._kills_next and now >= self._kill_s:
            self._process.send(signal.SIGKILL)
            self.kills += 1
            self._kills_next = False

    def _begin(self, plan: Plan, now: float) -> None:
        options = ["--batch", plan.batch, "--model", plan.model, "--no-validate-first", "--max-invalid", "10"]
        command = ["submit", str(plan.file), *options, "--failure-budget", "0"]
        log = self._folder / "logs" / "producer.log"
        self._process = self._fork_server.start(
            "producer", "tests.chaos.fake_worker:run_command", {"arguments": command}, env=self._env, log=log
        )
        self._kill_s = max(self._kill_s, now + self._random.uniform(0.05, 0.6))


def _harm_at(batch: int, index: int) -> str:
    """Return the first word of the prompt of a row that does harm."""
    deadly = batch % _DEADLY_EVERY == 1
    words = [word for word, (_, rows) in _HARMFUL.items() if index in rows and (deadly or word == BREAKS)]
    return words[0] if words else ""

"""A journal of each worker's ledger calls. A written line survives the SIGKILL of its writer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.records import CommitOutcome, FailOutcome

#: outcomes of a commit that took effect just now
FRESH = frozenset({"done", "full"})
#: what stores an image or a draft
STORES = frozenset({"commit", "draft"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One call of the ledger, sent at ``requested_s`` and answered at ``at_s`` of CLOCK_MONOTONIC.

    All processes of a machine share that clock. ``what`` is lease, commit, draft, fail, release or park, and
    ``outcome`` the answer: of a lease that goes on from a checkpoint, the checkpoint's epoch. A draft is a commit.
    """

    requested_s: float
    at_s: float
    pid: int
    what: str
    job: str
    epoch: int
    outcome: str = ""
    sha256: str = ""


class Journal:
    """Appends lines to a file of this process."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / f"{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(
        self, what: str, requested_s: float, leases: Sequence[Lease], outcomes: Sequence[str] = (), **more: str
    ) -> None:
        """Write a line for each lease."""
        times, lines = {"requested_s": requested_s, "at_s": time.monotonic()}, []
        for at, lease in enumerate(leases):
            line = {**times, "pid": os.getpid(), "what": what, "job": lease.name, "epoch": lease.epoch, **more}
            lines.append(json.dumps({**line, "outcome": outcomes[at] if outcomes else ""}) + "\n")
        os.write(self._file, "".join(lines).encode())


def read_journals(folder: Path) -> list[Entry]:
    """Return the lines of all processes in the order of time."""
    return sorted((entry for file in folder.glob("*.jsonl") for entry in read_journal(file)), key=lambda e: e.at_s)


def read_journal(file: Path) -> Iterator[Entry]:
    """Yield the lines of one process; its last one may be cut."""
    for line in file.read_bytes().split(b"\n"):
        try:
            yield Entry(**json.loads(line))
        except ValueError:
            continue


def watch_ledger(journal: Journal) -> None:
    """Have every ledger of this process record its answers."""
    lease, commit, fail, release, park = Ledger.lease, Ledger.commit, Ledger.fail, Ledger.release, Ledger.park

    def noted_lease(self: Ledger, *args: Any, **options: Any) -> list[Lease]:
        requested_s = time.monotonic()
        leases = lease(self, *args, **options)
        journal.write("lease", requested_s, leases, [str(each.checkpoint or "") for each in leases])
        return leases

    def noted_commit(
        self: Ledger, finished: Sequence[tuple[Lease, dict[str, Any]]], *args: Any, **options: Any
    ) -> list[CommitOutcome]:
        requested_s = time.monotonic()
        outcomes = commit(self, finished, *args, **options)
        for (held, receipt), outcome in zip(finished, outcomes, strict=True):
            what = "draft" if "draft" in receipt else "commit"
            journal.write(what, requested_s, [held], [outcome], sha256=receipt["sha256"])
        return outcomes

    def noted_fail(self: Ledger, lease: Lease, *args: Any, **options: Any) -> FailOutcome:
        requested_s = time.monotonic()
        outcome = fail(self, lease, *args, **options)
        journal.write("fail", requested_s, [lease], [outcome])
        return outcome

    def noted_release(self: Ledger, leases: Any, *args: Any, **options: Any) -> int:
        held = list(leases)
        requested_s = time.monotonic()
        released = release(self, held, *args, **options)
        journal.write("release", requested_s, held)
        return released

    def noted_park(self: Ledger, parked: Sequence[Lease], *args: Any, **options: Any) -> int:
        requested_s = time.monotonic()
        still_held = park(self, parked, *args, **options)
        journal.write("park", requested_s, parked)
        return still_held

    Ledger.lease = noted_lease  # type: ignore[method-assign]
    Ledger.commit = noted_commit  # type: ignore[method-assign]
    Ledger.fail = noted_fail  # type: ignore[method-assign]
    Ledger.release = noted_release  # type: ignore[method-assign]
    Ledger.park = noted_park  # type: ignore[method-assign]

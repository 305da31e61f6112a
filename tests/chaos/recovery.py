"""How long it took until things worked again: after a worker's death, and after the end of each kind of fault."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.fault_log import FaultLog, Kill, Return, Spell
from tests.chaos.journal import FRESH, STORES, Entry


@dataclass(frozen=True)
class Recovery:
    """How long it took, in seconds: from the death of a worker to the commits of what it held, by others; or from the
    return of Redis to the first answer that a worker got.
    """

    seconds: Sequence[float]

    def at(self, share: float) -> float:
        """Return the time that this share of jobs did not exceed."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def recovery(entries: Iterable[Entry], kills: Iterable[Kill]) -> Recovery:
    """Return how long the jobs of killed workers took to be committed elsewhere."""
    by_pid: dict[int, list[Entry]] = defaultdict(list)
    stored: dict[str, list[float]] = defaultdict(list)
    for entry in entries:
        by_pid[entry.pid].append(entry)
        if entry.what in STORES and entry.outcome in FRESH:
            stored[entry.job].append(entry.at_s)
    seconds = []
    died: dict[int, float] = defaultdict(float)
    for kill in sorted(kills, key=lambda kill: kill.at_s):
        held: dict[str, int] = {}
        # a long run uses the number of a process again
        for entry in by_pid.get(kill.pid, []):
            if not died[kill.pid] < entry.at_s <= kill.at_s:
                continue
            if entry.what == "lease":
                held[entry.job] = entry.epoch
            else:
                held.pop(entry.job, None)
        died[kill.pid] = kill.at_s
        # a draft is stored once more when it is finished
        firsts = (next((at_s for at_s in sorted(stored[job]) if at_s > kill.at_s), None) for job in held)
        seconds += [first - kill.at_s for first in firsts if first is not None]
    return Recovery(seconds)


def resumption(entries: Iterable[Entry], returns: Sequence[Return]) -> Recovery:
    """Return how long workers that had been answered before took to be answered once Redis was back.

    A worker without an answer had died. If Redis became unavailable again meanwhile, only its last return counts.
    """
    answers: dict[int, list[float]] = defaultdict(list)
    for entry in entries:
        answers[entry.pid].append(entry.at_s)
    seconds = []
    for back in returns:
        for pid in back.pids:
            known = any(at_s < back.at_s for at_s in answers[pid])
            first = next((at_s for at_s in answers[pid] if at_s > back.at_s), None)
            if known and first is not None and not any(back.at_s < other.at_s < first for other in returns):
                seconds.append(first - back.at_s)
    return Recovery(seconds)


def work_again(entries: Iterable[Entry], faults: FaultLog) -> Mapping[str, Recovery]:
    """Return by kind how long each worker took from the end of a fault to its first commit.

    A time in which Redis or the store had another fault does not count, nor does that of a worker that was killed or
    had no job to commit.
    """
    commits: dict[int, list[float]] = defaultdict(list)
    for entry in entries:
        if entry.what in STORES and entry.outcome in FRESH:
            commits[entry.pid].append(entry.at_s)
    seconds: dict[str, list[float]] = defaultdict(list)
    for spell in faults.spells:
        seconds[spell.kind] += []
        for pid in spell.pids:
            first = next((at_s for at_s in commits[pid] if at_s > spell.ended_s), None)
            if first is not None and not any(_overlaps(other, spell, first, pid) for other in faults.spells):
                seconds[spell.kind].append(first - spell.ended_s)
    return {kind: Recovery(times) for kind, times in seconds.items()}


def _overlaps(other: Spell, spell: Spell, until_s: float, pid: int) -> bool:
    hits = other is not spell and (other.shared or pid in other.pids)
    return hits and other.began_s < until_s and other.ended_s > spell.ended_s

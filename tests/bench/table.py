"""Print a table of figures and bars, and write it between markers into docs/explanation/benchmarks.md.

A script collects ``Line``s and ends with ``return report("submission", lines, conditions, write=args.write)``.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "benchmarks.md"
#: by the kernel's name of a CPU's flag
_INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX-BF16",
    "sve": "SVE",
    "bf16": "BF16",
}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table. ``bar`` is None if the figure is only reported."""

    label: str
    figure: float
    unit: str = ""
    bar: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Return whether the figure meets its bar, if it has one."""
        if self.bar is None:
            return True
        return self.figure >= self.bar if self.at_least else self.figure <= self.bar

    def markdown(self) -> str:
        """Return the line as a row of a Markdown table."""
        bar = met = ""
        if self.bar is not None:
            bar = f"{'≥' if self.at_least else '≤'} {format_figure(self.bar)} {self.unit}".strip()
            met = "yes" if self.met else "**no**"
        return f"| {self.label} | {f'{format_figure(self.figure)} {self.unit}'.strip()} | {bar} | {met} |"


class Conditions:
    """The conditions of a measurement: created when it begins, rendered to text when it ends."""

    def __init__(self, redis_version: str = "") -> None:
        self.redis_version = redis_version
        self._began = time.monotonic()
        self._busy_s = _machine_busy_s()
        self._own_s = all_cpu_s()

    def markdown(self) -> str:
        """Return one sentence: date, machine, versions, and the load by other processes."""
        wall_s = time.monotonic() - self._began
        others = max(0.0, _machine_busy_s() - self._busy_s - (all_cpu_s() - self._own_s)) / wall_s
        redis = f"Redis {self.redis_version}, " if self.redis_version else ""
        return (
            f"{datetime.now(UTC):%Y-%m-%d}, {cpu_name()} ({instruction_sets()}), {os.cpu_count()} cores; Python "
            f"{platform.python_version()}, {redis}redis-py {version('redis')}, celery {version('celery')}. The run "
            f"took {wall_s:.0f} s, in which other processes kept {others:.2f} cores busy."
        )


def cpu_name() -> str:
    return _cpu_info("model name") or platform.machine()


def instruction_sets() -> str:
    """Return the CPU's instruction sets for the arithmetic of models, which decide how fast each dtype is."""
    flags = {*_cpu_info("flags").split(), *_cpu_info("Features").split()}
    return (
        ", ".join(name for flag, name in _INSTRUCTION_SETS.items() if flag in flags) or "no vector instructions known"
    )


def _cpu_info(field: str) -> str:
    """Return a field of the first core in /proc/cpuinfo, or an empty string."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(field):
            return line.partition(":")[2].strip()
    return ""


def own_cpu_s() -> float:
    """Return the CPU seconds, user and system, of this process and of its ended children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def all_cpu_s() -> float:
    """Return the CPU seconds of this process and of all its children, including running ones such as servers."""
    return own_cpu_s() + sum(process_cpu_s(pid) for pid in child_pids("self"))


def process_cpu_s(pid: int) -> float:
    """Return the CPU seconds, user and system, of a process and of all its descendants."""
    # its own and its ended children's times follow the name, which may contain blanks
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    return sum(map(int, times)) / _TICKS_PER_S + sum(process_cpu_s(child) for child in child_pids(pid))


def child_pids(pid: int | str = "self") -> list[int]:
    """Return the running children of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _machine_busy_s() -> float:
    """Return the busy seconds of all cores together since boot."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / _TICKS_PER_S


def format_figure(figure: float) -> str:
    """Return a figure with three significant digits, or as a whole number from 100 on."""
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def parse_arguments(description: str | None, *, count: int | None = None) -> argparse.Namespace:
    """Parse ``--quick`` and ``--write``, the options of every benchmark, and ``--count`` of one that has a default."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small run that only checks the script")
    parser.add_argument("--write", action="store_true", help="write the table into docs/explanation/benchmarks.md")
    if count is not None:
        parser.add_argument("--count", type=int, default=count, help=f"jobs [default: {count:,}]")
    return parser.parse_args()


def report(
    name: str, lines: Sequence[Line], conditions: Conditions, *, write: bool, note: str = "", page: Path = PAGE
) -> int:
    """Print a table and its missed bars, and write it into the page if ``write``. Return 1 if a bar is missed."""
    header = ["| measured | figure | bar | met |", "| --- | --- | --- | --- |"]
    text = "\n".join([*header, *(line.markdown() for line in lines), "", conditions.markdown(), *([note] * bool(note))])
    print(text, flush=True)
    missed = [line.label for line in lines if not line.met]
    print(f"\n{name}: " + (f"MISSED: {'; '.join(missed)}" if missed else "every bar is met"), flush=True)
    if write:
        write_between(name, text, page)
    return int(bool(missed))


def write_between(name: str, text: str, page: Path = PAGE) -> None:
    """Replace the text between ``<!-- name -->`` and ``<!-- /name -->`` of a page.

    Raises:
        ValueError: The page lacks a marker.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, begun, rest = page.read_text(encoding="utf-8").partition(begin)
    _, ended, tail = rest.partition(end)
    if not begun or not ended:
        raise ValueError(f"{page} has no {begin} ... {end}")
    page.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")

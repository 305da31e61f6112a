"""The invariants that hold once the faults have ended and the farm has finished."""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from tests.chaos.journal import FRESH, Entry
from tests.chaos.producer import Plan

from latentfarm.batch import Batch
from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.image_formats import PNG, format_of
from latentfarm.storage.keys import batch_prefix
from latentfarm.storage.manifest import ManifestReader, read_header
from latentfarm.storage.parallel_get import parallel_reader
from latentfarm.storage.results import MissingResultsError, list_generations, read_part

#: reads an object by key and sha256
Read = Callable[[str, str], bytes]

_THREADS = 4
#: the attempts of a job that breaks its step
_MOST_ATTEMPTS = 3
#: what a killed Redis had answered for so long may be unknown to the replica that takes over
_UNREPLICATED_S = 1.0
#: violations of one invariant that are listed
_SHOWN = 5


@dataclass
class Findings:
    """Violations by invariant, and figures."""

    violations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    jobs: int = 0
    done: int = 0
    failed: int = 0
    discarded: int = 0
    charged: int = 0
    orphans: int = 0
    #: jobs without fault that failed, or were charged an attempt that was none of theirs
    harmed: list[str] = field(default_factory=list)
    #: by batch, the indices of done jobs whose images were put down and taken up
    put_down: dict[str, list[int]] = field(default_factory=dict)

    def require(self, holds: object, invariant: str, what: str) -> None:
        """Record a violation unless it holds."""
        if not holds:
            self.violations[invariant].append(what)

    def lines(self) -> Iterator[str]:
        """Yield what was violated."""
        for invariant, cases in self.violations.items():
            more = f" and {len(cases) - _SHOWN} more" if len(cases) > _SHOWN else ""
            yield f"{invariant}: {'; '.join(cases[:_SHOWN])}{more}"


@dataclass(frozen=True)
class Losses:
    """What Redis had acknowledged and lost: commits of these jobs, and what was answered right before a failover.

    ``drafts`` are jobs whose drafts may be lost.
    """

    commits: frozenset[str] = frozenset()
    drafts: frozenset[str] = frozenset()
    failovers_s: Sequence[float] = ()

    def may_include(self, entry: Entry) -> bool:
        """Return whether the effect of a call may be lost."""
        return any(at_s - _UNREPLICATED_S < entry.at_s < at_s + 1 for at_s in self.failovers_s)


def check_farm(
    farm: Farm,
    plans: Sequence[Plan],
    entries: Sequence[Entry],
    losses: Losses = Losses(),
) -> Findings:
    """Check the ledger, the bucket and the journals."""
    found = Findings()
    known = set(farm.ledger.batches())
    found.require(known == {plan.batch for plan in plans}, "every batch is known", f"the ledger knows {sorted(known)}")
    with parallel_reader(farm.bucket) as read, ThreadPoolExecutor(_THREADS) as pool:
        for plan in plans:
            if plan.batch in known:
                _check_batch(found, farm, plan, read, pool)
    _check_nothing_is_held(found, farm)
    _check_journals(found, entries, losses)
    return found


def _check_batch(found: Findings, farm: Farm, plan: Plan, read: Read, pool: ThreadPoolExecutor) -> None:
    batch = farm.batch(plan.batch)
    record = farm.ledger.batch(plan.batch)
    ended = record.done + record.failed + record.cancelled
    counts = (
        f"{plan.batch} is {record.state}: {record.done} done, {record.failed} failed, {record.cancelled} discarded, "
        f"{record.drafted} drafts of {plan.rows}"
    )
    found.require(record.state == "complete", "every batch is complete", counts)
    found.require(ended == record.total == plan.rows, "done + failed + discarded = manifest", counts)
    states = Counter(state.word for state in farm.ledger.states(plan.batch, 0, record.total))
    fields = ("done", "failed", "cancelled", "drafted")
    wrong = {name: states[name] for name in fields if states[name] != getattr(record, name)}
    found.require(not wrong, "counts agree with states", f"{counts}; states: {dict(states)}")
    found.jobs, found.done = found.jobs + plan.rows, found.done + record.done
    found.failed, found.discarded = found.failed + record.failed, found.discarded + record.cancelled
    _check_manifest(found, farm, plan)
    _check_checkpoints(found, farm, plan)
    try:
        lines = list(batch.results())
    except (MissingResultsError, InputError) as error:
        found.require(None, "parts of results are complete", f"{plan.batch}: {error}")
        return
    for line in lines:
        _check_line(found, plan, line)
    found.put_down[plan.batch] = [line["index"] for line in lines if line["state"] == "done" and "spans" in line]
    _check_parts(found, farm, plan, lines)
    _check_images(found, farm, batch, lines, read, pool)


def _check_manifest(found: Findings, farm: Farm, plan: Plan) -> None:
    header = read_header(farm.bucket, plan.batch)
    whole = header is not None and header.total == plan.rows
    found.require(whole, "the manifest is whole", f"{plan.batch}: header {header}")
    reader = ManifestReader(farm.bucket)
    misplaced = [index for index in range(plan.rows) if reader.entry(plan.batch, index)["index"] != index]
    found.require(not misplaced, "the manifest is whole", f"{plan.batch}: other lines at {misplaced[:5]}")


def _check_line(found: Findings, plan: Plan, line: dict[str, Any]) -> None:
    job, attempts = line["job"], line["attempts"]
    code = line.get("error", {}).get("code")
    wanted = plan.fails.get(line["index"])
    if line["state"] in {"done", "failed"}:
        found.require(code == wanted, "a job fails for its own fault only", f"{job}: {line.get('error')}, not {wanted}")
    choice = "cancelled" if line["index"] in plan.discarded else "failed" if wanted else "done"
    found.require(line["state"] == choice, "every draft ends as chosen, and no other job", f"{job}: {line['state']}")
    if wanted is None and (code is not None or attempts > 1):
        found.harmed.append(job)
    # the run that succeeds counts as one
    most = 1 if wanted != "engine_error" else _MOST_ATTEMPTS
    found.require(0 <= attempts <= most, "no job is charged for a fault that is not its own", f"{job}: {attempts}")
    found.charged += max(0, attempts - 1)


def _check_checkpoints(found: Findings, farm: Farm, plan: Plan) -> None:
    """A checkpoint is of use until its job ends. Then it goes, with the preview of a draft, at the latest by ``gc``."""
    kept = sorted(key for key in farm.bucket.keys(batch_prefix(plan.batch)) if "/drafts/" in key)
    found.require(not kept, "no checkpoint outlives its job", f"{plan.batch}: {len(kept)}: {kept[:3]}")
    known = farm.ledger.redis.hgetall(f"{{lf}}:checkpoints:{plan.batch}")
    found.require(not known, "no checkpoint outlives its job", f"{plan.batch}: the ledger has {known}")


def _check_parts(found: Findings, farm: Farm, plan: Plan, lines: Sequence[dict[str, Any]]) -> None:
    """The parts of results in the bucket hold every job once, in the state of the ledger."""
    states = farm.ledger.states(plan.batch, 0, plan.rows)
    waiting = [part for batch, part in farm.ledger.full_parts() if batch == plan.batch]
    found.require(not waiting, "every part of results is flushed", f"{plan.batch}: {waiting} wait")
    stored: list[dict[str, Any]] = []
    for part, generation in sorted(list_generations(farm.bucket, plan.batch).items()):
        stored += read_part(farm.bucket, plan.batch, part, generation)
    indices = [line["index"] for line in stored]
    found.require(indices == list(range(plan.rows)), "parts of results are complete", f"{plan.batch}: {len(indices)}")
    for line in stored:
        state = states[line["index"]].word
        found.require(
            line["state"] == state, "results agree with the ledger", f"{line['job']}: {line['state']}, {state}"
        )
        has_receipt = line["state"] != "done" or {"key", "sha256", "epoch"} <= line.keys()
        found.require(has_receipt, "a job that is done has its receipt", str(line["job"]))
    differing = [
        one["job"] for one, other in zip(stored, lines, strict=False) if one.get("sha256") != other.get("sha256")
    ]
    found.require(not differing, "results agree with the ledger", str(differing[:5]))


def _check_images(
    found: Findings, farm: Farm, batch: Batch, lines: Sequence[dict[str, Any]], read: Read, pool: ThreadPoolExecutor
) -> None:
    done = [line for line in lines if line["state"] == "done" and "key" in line]
    stored_keys = {key for key in farm.bucket.keys(batch_prefix(batch.name)) if "/images/" in key}
    receipts = {line["key"] for line in done}
    missing, orphans = receipts - stored_keys, stored_keys - receipts
    found.orphans += len(orphans)
    found.require(not missing, "every job done has its object", f"{batch.name}: {sorted(missing)[:3]}")
    found.require(not orphans, "every job has one object", f"{batch.name}: {len(orphans)}: {sorted(orphans)[:3]}")
    there = [line for line in done if line["key"] in stored_keys]
    for problem in pool.map(lambda line: _problem_of(line, read), there):
        found.require(not problem, "images decode and match their receipts", problem)


def _problem_of(line: dict[str, Any], read: Read) -> str:
    try:
        body, made = read(line["key"], line["sha256"]), format_of(line["key"]) or PNG
        with Image.open(io.BytesIO(body), formats=[made.pillow]) as image:
            image.load()
    except Exception as error:  # noqa: BLE001 - any error means that the image is not what its receipt states
        return f"{line['job']}: {error}"
    same = hashlib.sha256(body).hexdigest() == line["sha256"] and len(body) == line["bytes"]
    return "" if same else f"{line['job']}: other bytes"


def _check_nothing_is_held(found: Findings, farm: Farm) -> None:
    leases, holders = farm.ledger.redis.zcard("{lf}:leases"), farm.ledger.redis.hlen("{lf}:holders")
    found.require(not leases and not holders, "no lease is left", f"{leases} leases, {holders} holders")


def _check_journals(found: Findings, all_entries: Sequence[Entry], losses: Losses) -> None:
    entries = [entry for entry in all_entries if not losses.may_include(entry)]
    by_job: dict[str, list[Entry]] = defaultdict(list)
    # the jobs of one lease share an epoch
    owners: dict[tuple[str, int], Entry] = {}
    for entry in entries:
        by_job[entry.job].append(entry)
        if entry.what == "lease":
            other = owners.setdefault((entry.job, entry.epoch), entry)
            found.require(other is entry, "no job is leased twice under an epoch", f"{entry.job}: {entry.epoch}")
    for job, journal in by_job.items():
        leases = [entry for entry in journal if entry.what == "lease"]
        commits = [entry for entry in journal if entry.what == "commit" and entry.outcome in FRESH]
        drafts = [entry for entry in journal if entry.what == "draft" and entry.outcome in FRESH]
        found.require(
            len(commits) <= 1 or job in losses.commits, "no job is committed twice", f"{job}: {len(commits)} times"
        )
        many = len(drafts) > 1 and job not in losses.drafts
        found.require(not many, "no draft is made twice", f"{job}: {len(drafts)} times")
        found.require(_rises(leases), "epochs rise", f"{job}: {[entry.epoch for entry in leases]}")
        newest = max((entry.epoch for entry in leases), default=0)
        for entry in commits:
            found.require(entry.epoch >= newest, "no stale epoch commits", f"{job}: {entry.epoch}, leased {newest}")
        for entry in drafts:
            # a draft that is finished is leased again
            newest = max((lease.epoch for lease in leases if lease.at_s < entry.requested_s), default=0)
            found.require(entry.epoch >= newest, "no stale epoch commits", f"{job}: {entry.epoch}, leased {newest}")


def _rises(leases: Sequence[Entry]) -> bool:
    """Return whether each request got a higher epoch than every answer before it."""
    newest, answered = 0, list[Entry]()
    for entry in sorted(leases, key=lambda each: each.requested_s):
        newest = max([newest, *(each.epoch for each in answered if each.at_s < entry.requested_s)])
        if entry.epoch <= newest:
            return False
        answered.append(entry)
    return True


def forgotten(farm: Farm, acknowledged: Iterable[Entry]) -> list[str]:
    """Return the commits that were acknowledged and that the ledger does not know."""
    lost = []
    for entry in acknowledged:
        batch, _, index = entry.job.rpartition("/")
        if farm.ledger.states(batch, int(index), int(index) + 1)[0].word != "done":
            lost.append(entry.job)
    return lost

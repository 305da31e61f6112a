"""Measures what submitting a million rows costs, against a Celery producer loop over the same rows in the same run.

python -m tests.bench.bench_submission            # prints the table
python -m tests.bench.bench_submission --write    # and puts it into docs/explanation/benchmarks.md
"""

from __future__ import annotations

import json
import multiprocessing
import random
import statistics
import uuid
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import redis
from celery import Celery
from tests.bench.servers import Used, farm_servers, redis_server, run_command, temporary_folder, used_memory_bytes
from tests.bench.table import Conditions, Line, own_cpu_s, parse_arguments, report

from latentfarm.doorbell import broker_url
from latentfarm.ledger import Ledger
from latentfarm.settings import Settings

_WORDS = (
    ("a photo of", "an oil painting of", "a pencil sketch of", "a watercolour of", "a film still of", "a mosaic of"),
    ("an old", "a tiny", "a crowded", "a lonely", "a golden", "a broken", "a huge", "a frozen", "a glass", "a quiet"),
    ("lighthouse", "tram", "market", "orchard", "piano", "harbour", "fox", "library", "bridge", "teapot", "robot"),
    ("at dawn", "at night", "in the rain", "in fog", "under neon light", "in deep snow", "by candlelight", "in spring"),
    ("wide angle", "close up", "from above", "in muted colours", "highly detailed", "soft focus", "isometric"),
)
_SPAWN = multiprocessing.get_context("spawn")


def prompt_of(number: int) -> str:
    """Return a prompt of some 80 characters: words drawn at random, and its number, so that no two are the same."""
    words = random.Random(number)  # noqa: S311 - the same prompts in every run
    subject = " ".join(words.choice(choices) for choices in _WORDS[:3])
    return f"{subject} {words.choice(_WORDS[3])}, {words.choice(_WORDS[4])}, picture number {number:07d}"


def write_prompts(folder: Path, rows: int) -> Path:
    """Write a file of rows with a prompt and two more fields each."""
    file = folder / f"rows-{rows}.jsonl"
    with file.open("w") as out:
        for number in range(rows):
            row = {"prompt": prompt_of(number), "num_inference_steps": 20 + number % 11, "seed": number}
            out.write(json.dumps(row) + "\n")
    return file


def write_text(folder: Path, rows: int) -> Path:
    """Write a file of bare prompts."""
    file = folder / f"rows-{rows}.txt"
    with file.open("w") as out:
        out.writelines(prompt_of(number) + "\n" for number in range(rows))
    return file


@dataclass(frozen=True)
class Submitted:
    """What a submission used, and by how much Redis grew."""

    used: Used
    grown_bytes: int
    jobs: int

    @property
    def cpu_us(self) -> float:
        """CPU microseconds a job."""
        return self.used.cpu_s / self.jobs * 1e6


def submit(settings: Settings, folder: Path, jobs: int, *arguments: str) -> Submitted:
    """Run ``latentfarm submit`` against an empty Redis.

    Raises:
        RuntimeError: it failed, or the batch has not as many jobs as it should.
    """
    ledger = Ledger.connect(settings.redis_url)
    ledger.redis.flushall()
    before = used_memory_bytes(ledger.redis)
    # the bucket remembers the batches of the rounds before
    batch = f"measured-{uuid.uuid4().hex[:8]}"
    used = run_command(["submit", "--batch", batch, *arguments], settings, log=folder / "submit.log")
    grown = used_memory_bytes(ledger.redis) - before
    record = ledger.batch(batch)
    if (record.state, record.total, ledger.count_pending("mini")) != ("open", jobs, jobs):
        raise RuntimeError(f"{record} after a submission of {jobs} jobs")
    return Submitted(used, grown, jobs)


@dataclass(frozen=True)
class Peer:
    """What Celery's loop used a job: CPU seconds of the producer, and bytes of Redis."""

    cpu_s: float
    grown_bytes: float


def celery_loop(url: str, file: Path, rows: int) -> Peer:
    """Send rows with ``apply_async`` from a process of its own.

    Raises:
        RuntimeError: not all messages arrived.
    """
    client = redis.Redis.from_url(url)
    client.flushall()
    before = used_memory_bytes(client)
    with _SPAWN.Pool(1) as pool:
        cpu_s = pool.apply(_send, (url, file, rows))
    if client.llen("celery") != rows:
        raise RuntimeError(f"{client.llen('celery')} of {rows} messages arrived")
    return Peer(cpu_s / rows, (used_memory_bytes(client) - before) / rows)


def _send(url: str, file: Path, rows: int) -> float:
    app = Celery("peer", broker=broker_url(url), set_as_current=False)
    app.conf.update(task_serializer="json", task_ignore_result=True)
    task = app.task(name="render")(_render)
    with file.open() as lines:
        # the first call connects; Celery's own pool keeps that connection for all others
        task.apply_async((json.loads(next(lines)),))
        began = own_cpu_s()
        for line in islice(lines, rows - 1):
            task.apply_async((json.loads(line),))
        return own_cpu_s() - began


def _render(row: dict[str, object]) -> None:
    """Stand for the task; no worker runs."""


def main() -> int:
    """Return 1 where a bar is missed."""
    arguments = parse_arguments(__doc__)
    large, small, peer_rows, rounds = (10_000, 1_000, 1_000, 1) if arguments.quick else (1_000_000, 100_000, 50_000, 3)
    with temporary_folder() as folder:
        file, short, text = write_prompts(folder, large), write_prompts(folder, small), write_text(folder, large)
        seeds = write_prompts(folder, large // 1_000)
        with farm_servers(folder / "farm") as settings, redis_server(folder / "peer") as peer_url:
            conditions = Conditions(Ledger.connect(settings.redis_url).ping())
            ours: list[Submitted] = []
            shorts: list[Submitted] = []
            peers: list[Peer] = []
            for _ in range(rounds):
                peers.append(celery_loop(peer_url, file, peer_rows))
                shorts.append(submit(settings, folder, small, str(short)))
                ours.append(submit(settings, folder, large, str(file)))
                print(peers[-1], shorts[-1], ours[-1], sep="\n", flush=True)
            from_text = submit(settings, folder, large, str(text))
            swept = submit(settings, folder, large, str(seeds), "--sweep", "seed=1..1000")
    # what else the machine does makes any round dearer, never cheaper: each side's cheapest round is compared
    cheapest = min(ours, key=lambda run: run.used.cpu_s)
    cpu_us, peer_us = cheapest.cpu_us, min(peer.cpu_s for peer in peers) * 1e6
    peak, short_peak = (statistics.median(run.used.peak_bytes for run in runs) for runs in (ours, shorts))
    grown = max(run.grown_bytes for run in ours)
    lines = [
        Line(f"`apply_async`: CPU a job ({peer_rows:,} jobs)", peer_us, "µs"),
        Line(f"`latentfarm submit`: CPU a job ({large:,} rows of JSONL)", cpu_us, "µs"),
        Line("`apply_async` against `submit`, CPU a job", peer_us / cpu_us, "times", 25, at_least=True),
        Line("CPU of the whole command", cheapest.used.cpu_s, "s"),
        Line("wall time of the whole command", cheapest.used.wall_s, "s"),
        Line(f"`apply_async`: Redis growth for {large:,} jobs", peers[0].grown_bytes * large / 1e6, "MB"),
        Line(f"`submit`: Redis growth for {large:,} jobs, doorbells included", grown / 1e6, "MB", 2),
        Line(f"peak memory, {small:,} rows", short_peak / 1e6, "MB"),
        Line(f"peak memory, {large:,} rows", peak / 1e6, "MB", 200),
        Line(f"peak memory, {large:,} rows against {small:,}", 100 * abs(peak / short_peak - 1), "% apart", 20),
        Line(f"{large:,} lines of txt: CPU a job", from_text.cpu_us, "µs"),
        Line(f"{large:,} lines of txt: peak memory", from_text.used.peak_bytes / 1e6, "MB"),
        Line(f"{large // 1_000:,} rows x 1,000 seeds: CPU a job", swept.cpu_us, "µs"),
        Line(f"{large // 1_000:,} rows x 1,000 seeds: peak memory", swept.used.peak_bytes / 1e6, "MB"),
    ]
    return report("submission", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())

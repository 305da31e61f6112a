"""Measure what drafts save: all rows as drafts, a tenth of them finished, against rendering every row to its end.

    python -m tests.bench.bench_drafts            # print the table
    python -m tests.bench.bench_drafts --write    # also write it into docs/explanation/benchmarks.md

Both are done by the same workers, one for each core, with real servers, from queue to commit. The arithmetic counts
evaluations of the model only; previews are decoded, encoded, scored and stored besides, and so are the checkpoints.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from tests.bench.comparison import CORES
from tests.bench.end_to_end import LatentfarmWorkers, latentfarm_workers
from tests.bench.servers import farm_servers, temporary_folder
from tests.bench.table import Conditions, Line, parse_arguments, process_cpu_s, report
from tests.bench.workload import GUIDANCE, Row, uniform

from latentfarm.batch import Batch
from latentfarm.batch_drafts import DraftSelection
from latentfarm.job_state import JobState
from latentfarm.step_counts import draft_evaluations
from latentfarm.storage.keys import drafts_prefix
from latentfarm.storage.orphans import collect_orphans

_STEPS, _DRAFT, _KEPT, _BY = 30, 0.3, 0.1, "sharpness"
#: points between what is saved and the arithmetic
_MOST_POINTS = 3
_POLL_S, _TIMEOUT_S = 0.25, 3600


@dataclass(frozen=True)
class Phase:
    """What one part of the work took: seconds, and CPU seconds of the workers."""

    wall_s: float
    cpu_s: float


class Stopwatch:
    """Measures phases, one after the other, of the same workers."""

    def __init__(self, workers: LatentfarmWorkers) -> None:
        self._workers = workers
        self._since = self._read()

    def phase(self, name: str) -> Phase:
        """Return what was used since the last phase."""
        now_s, cpu_s = self._read()
        found = Phase(now_s - self._since[0], cpu_s - self._since[1])
        print(f"  {name}: {found.wall_s:.1f} s, {found.cpu_s:.1f} s of CPU", flush=True)
        self._since = now_s, cpu_s
        return found

    def _read(self) -> tuple[float, float]:
        return time.monotonic(), sum(process_cpu_s(pid) for pid in self._workers.supervisors)


def wait_for(batch: Batch, state: JobState, count: int) -> None:
    """Wait until so many jobs have a state.

    Raises:
        RuntimeError: a job failed, or the time is up.
    """
    ledger, deadline = batch.connection.ledger, time.monotonic() + _TIMEOUT_S
    while True:
        record = ledger.batch(batch.name)
        if record.failed or time.monotonic() > deadline:
            raise RuntimeError(f"{batch.name}: {record}")
        if (record.drafted if state is JobState.DRAFTED else record.done) >= count:
            return
        time.sleep(_POLL_S)


def measure(workers: LatentfarmWorkers, rows: list[Row]) -> list[Line]:
    """Render all rows, then all as drafts; finish the best and discard the others. Return the lines."""
    farm, model, count = workers.farm, workers.settings.model, len(rows)
    workers.warm_up()
    stopwatch = Stopwatch(workers)
    batch = farm.submit(rows, batch="whole", model=model)
    wait_for(batch, JobState.DONE, count)
    whole = stopwatch.phase(f"{count} images")
    decode_s = statistics.fmean(line["timings"]["decode"] for line in batch.results())

    batch = farm.submit(rows, batch="drafts", model=model, draft=_DRAFT)
    wait_for(batch, JobState.DRAFTED, count)
    drafts = stopwatch.phase(f"{count} drafts")
    receipts = [line["draft"] for line in batch.results()]
    checkpoint_bytes = statistics.fmean(receipt["checkpoint"]["bytes"] for receipt in receipts)

    began = time.monotonic()
    price = batch.price_drafts(DraftSelection(top=_KEPT, by=_BY))
    choose_s = time.monotonic() - began
    kept = batch.finish(DraftSelection(top=_KEPT, by=_BY)).changed
    wait_for(batch, JobState.DONE, kept)
    finished = stopwatch.phase(f"{kept} of them finished")
    discarded = batch.discard(DraftSelection()).changed
    freed = stopwatch.phase(f"{discarded} of them discarded")

    # a worker deletes what a finished draft had stored a moment after the image, and what is lost stays until then
    collect_orphans(farm.ledger, farm.bucket, batch.name)
    stored = [*farm.bucket.keys(drafts_prefix(batch.name))]
    assert price.selected == kept
    assert kept + discarded == count
    used_s = drafts.cpu_s + finished.cpu_s + freed.cpu_s
    saved, wall_saved = 1 - used_s / whole.cpu_s, 1 - (drafts.wall_s + finished.wall_s) / whole.wall_s
    made = draft_evaluations(_DRAFT, _STEPS, _STEPS)
    assert made is not None
    assert {receipt["evaluations"] for receipt in receipts} == {made}
    arithmetic = 1 - (made + kept / count * (_STEPS - made)) / _STEPS
    # a preview is decoded for each draft, and one image more for each that is finished
    decoder = decode_s * count / whole.cpu_s
    with_decoder = (1 - decoder) * arithmetic - decoder * kept / count
    return [
        Line(f"{count:,} images of {_STEPS} steps: CPU of the workers", whole.cpu_s, "s"),
        Line(f"{count:,} drafts of {made} steps", drafts.cpu_s, "s"),
        Line(f"{kept} of them finished", finished.cpu_s, "s"),
        Line("saved", 100 * saved, "%"),
        Line("saved by the arithmetic of steps", 100 * arithmetic, "%"),
        Line("the difference", 100 * abs(arithmetic - saved), "points", _MOST_POINTS),
        Line("saved by the arithmetic of steps and decoder", 100 * with_decoder, "%"),
        Line("saved of the time until the last image", 100 * wall_saved, "%"),
        Line("a draft besides its steps: CPU", (drafts.cpu_s - whole.cpu_s * made / _STEPS) / count * 1000, "ms"),
        Line("a checkpoint", checkpoint_bytes / 1e3, "kB"),
        Line(f"choosing the best tenth by {_BY}, with the price", choose_s, "s"),
        Line(f"discarding {discarded}", freed.wall_s, "s"),
        Line("checkpoints and previews left after `gc`", len(stored), "", 0),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__, count=2_000)
    count = 40 if arguments.quick else arguments.count
    conditions = Conditions()
    with (
        temporary_folder() as folder,
        farm_servers(folder) as settings,
        latentfarm_workers(settings.model_copy(update={"dtype": "float32"}), CORES, folder / "workers") as workers,
    ):
        lines = measure(workers, uniform(count, num_inference_steps=_STEPS))
    note = f"The model is mini, in float32, guidance {GUIDANCE:g}; {CORES} workers of 1 torch thread."
    return report("drafts", lines, conditions, write=arguments.write, note=note)


if __name__ == "__main__":
    raise SystemExit(main())

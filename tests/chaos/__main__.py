"""``python -m tests.chaos --minutes 3 --seed 7``: the farm under faults, the stock control beside it, and a table."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

from tests.chaos.farm_run import Outcome, run_farm
from tests.chaos.report import report
from tests.chaos.stock_run import StockOutcome, run_stock
from tests.chaos.stores import StoreKind


def main() -> int:
    """Run; return 1 where an invariant does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long faults are injected [default: 3]")
    parser.add_argument("--seed", type=int, help="seed of the schedule [default: random]")
    parser.add_argument("--store", choices=get_args(StoreKind), default="rclone", help="the S3 server")
    parser.add_argument("--folder", type=Path, help="output folder [default: a new one below ./out]")
    parser.add_argument("--no-stock", action="store_true", help="leave the stock Celery control out")
    parser.add_argument(
        "--stock-jobs",
        type=int,
        metavar="N",
        help="run the control at the same time, with N jobs [default: afterwards, with as many jobs as the farm had]",
    )
    parser.add_argument("--write", action="store_true", help="write the table into docs/explanation/reliability.md")
    args = parser.parse_args()
    seed = secrets.randbelow(10**6) if args.seed is None else args.seed
    folder = (args.folder or Path("out") / f"chaos-{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    print(f"seed {seed}, store {args.store}, {args.minutes:g} minutes; everything is in {folder}", flush=True)
    farm, stock = _run(folder, seed, args)
    for violation in farm.violations:
        print(f"VIOLATED (seed {seed}, store {args.store}): {violation}", flush=True)
    report(farm, stock, seed=seed, store=args.store, minutes=args.minutes, write=args.write)
    held = (
        "every invariant holds" if not farm.violations else f"{len(farm.violations)} invariants do not hold, see above"
    )
    print(f"seed {seed}, store {args.store}: {held}; everything is in {folder}", flush=True)
    return int(bool(farm.violations))


def _run(folder: Path, seed: int, args: argparse.Namespace) -> tuple[Outcome, StockOutcome | None]:
    """Run the farm, and the control beside it or afterwards."""
    duration_s = 60 * args.minutes
    if args.stock_jobs is None or args.no_stock:
        farm = run_farm(folder / "farm", seed=seed, duration_s=duration_s, store=args.store)
        if args.no_stock:
            return farm, None
        return farm, run_stock(folder / "stock", seed=seed, duration_s=duration_s, jobs=farm.found.jobs)
    # a process of its own: each run is the parent of what it starts
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        stock = pool.submit(run_stock, folder / "stock", seed=seed, duration_s=duration_s, jobs=args.stock_jobs)
        farm = run_farm(folder / "farm", seed=seed, duration_s=duration_s, store=args.store)
        return farm, stock.result()


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.chaos --minutes 3 --seed 7``: the farm under faults, the stock control beside it, and a table."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from pathlib import Path
from typing import get_args

from tests.chaos.farm_run import run_farm
from tests.chaos.report import report
from tests.chaos.stock_run import run_stock
from tests.chaos.stores import StoreKind


def main() -> int:
    """Run; return 1 where an invariant does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long faults are injected [default: 3]")
    parser.add_argument("--seed", type=int, help="seed of the schedule [default: random]")
    parser.add_argument("--store", choices=get_args(StoreKind), default="rclone", help="the S3 server")
    parser.add_argument("--folder", type=Path, help="output folder [default: a new one below ./out]")
    parser.add_argument("--no-stock", action="store_true", help="leave the stock Celery control out")
    parser.add_argument("--write", action="store_true", help="write the table into docs/explanation/reliability.md")
    args = parser.parse_args()
    seed = secrets.randbelow(10**6) if args.seed is None else args.seed
    folder = (args.folder or Path("out") / f"chaos-{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    print(f"seed {seed}, store {args.store}, {args.minutes:g} minutes; everything is in {folder}", flush=True)
    farm = run_farm(folder / "farm", seed=seed, duration_s=60 * args.minutes, store=args.store)
    for violation in farm.violations:
        print(f"VIOLATED (seed {seed}, store {args.store}): {violation}", flush=True)
    stock = None
    if not args.no_stock:
        stock = run_stock(folder / "stock", seed=seed, duration_s=60 * args.minutes, jobs=farm.found.jobs)
    report(farm, stock, seed=seed, store=args.store, minutes=args.minutes, write=args.write)
    held = (
        "every invariant holds" if not farm.violations else f"{len(farm.violations)} invariants do not hold, see above"
    )
    print(f"seed {seed}, store {args.store}: {held}; everything is in {folder}", flush=True)
    return int(bool(farm.violations))


if __name__ == "__main__":
    sys.exit(main())

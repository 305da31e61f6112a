"""``verify``: whether pictures are what their receipts say, by rendering some of them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentfarm.cli import options
from latentfarm.cli.options import check_dtype, print_json, with_model
from latentfarm.cli.progress import CountProgress, echo_err
from latentfarm.cli.shared import fail_if
from latentfarm.farm import Farm
from latentfarm.local.farm import require_worker_packages

if TYPE_CHECKING:
    from latentfarm_worker.tools.verification import ComparisonResult


def verify(
    batch: options.BatchName,
    sample: Annotated[int, typer.Option(min=1, metavar="N", help="How many finished pictures, chosen at random.")] = 20,
    every: Annotated[bool, typer.Option("--all", help="Every finished picture.")] = False,
    seed: Annotated[int, typer.Option(help="What the choice is made of; the same one chooses the same.")] = 0,
    model: options.WorkerModel = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, float16 or bfloat16; that of each receipt if open.")
    ] = None,
    pixels: Annotated[
        bool,
        typer.Option(
            "--pixels",
            help="Allow small differences where the bytes ought to be the same: on another machine of the kind, or "
            "with another version of torch.",
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Render some pictures of a batch again from their receipts and compare; exit 1 if one differs.

    It needs the model, and no worker. With the receipt's device, dtype, slots and CPU threads the bytes must be the
    same. Otherwise no channel of a pixel may differ by more than 2/255, or 64/255 where a dtype is not float32; by
    32/255 more in a JPEG.

    Example: `latentfarm verify cats --sample 20`
    """
    if dtype is not None:
        check_dtype(dtype)
    farm = Farm.from_env()
    settings = with_model(farm.settings, model)
    require_worker_packages()
    found = farm.batch(batch)
    from latentfarm_worker.tools.verification import Verification, sample_finished

    done = farm.ledger.batch(batch).done
    chosen = sample_finished(found, None if every else sample, seed=seed)
    echo_err("loading the model ...")
    run = Verification(found, settings, dtype=dtype, tolerance=pixels)
    tally = _Tally()
    with CountProgress("rendering again", done if every else min(sample, done)) as progress:
        for result in run.run(chosen):
            tally.add(result)
            progress.show(tally.pictures)
            if result.differences and not as_json:
                typer.echo(f"{result.job}: {'; '.join(result.differences)}")
    if as_json:
        print_json({"batch": batch, "seed": seed, **tally.as_dict(), "rendered_on": sorted(run.conditions)})
    else:
        for conditions in sorted(run.conditions):
            echo_err(f"rendered again on {conditions}")
        typer.echo(tally.text())
    fail_if(tally.different)


class _Tally:
    """Verdicts, counted; those that differ are kept."""

    def __init__(self) -> None:
        self.pictures = self.same_bytes = self.within_bound = self.bound = self.largest = 0
        self.different: list[ComparisonResult] = []

    def add(self, result: ComparisonResult) -> None:
        self.pictures += 1
        if result.differences:
            self.different.append(result)
        elif result.same_bytes:
            self.same_bytes += 1
        else:
            self.within_bound += 1
            self.bound = max(self.bound, result.tolerance)
            self.largest = max(self.largest, result.largest_difference or 0)

    def text(self) -> str:
        counts = {
            "the same bytes": self.same_bytes,
            f"within {self.bound}/255, the largest difference is {self.largest}/255": self.within_bound,
            "different": len(self.different),
        }
        return "\n".join(f"{count} of {self.pictures} pictures: {what}" for what, count in counts.items() if count)

    def as_dict(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures,
            "same_bytes": self.same_bytes,
            "within_bound": self.within_bound,
            "bound": self.bound,
            "largest_difference": self.largest,
            "different": [
                {"job": each.job, "differences": list(each.differences), "largest_difference": each.largest_difference}
                for each in self.different
            ],
        }


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(verify)

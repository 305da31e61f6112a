"""``verify``: compare stored images with new renderings of their receipts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentfarm.cli import options
from latentfarm.cli.options import check_dtype, with_model
from latentfarm.cli.output import echo_err, print_json
from latentfarm.cli.progress import CountProgress
from latentfarm.cli.shared import fail_if
from latentfarm.farm import Farm
from latentfarm.local.farm import require_worker_packages
from latentfarm.model_spec import of_model

if TYPE_CHECKING:
    from latentfarm_worker.tools.comparison import ComparisonResult


def verify(
    batch: options.BatchName,
    sample: Annotated[int, typer.Option(min=1, metavar="N", help="Finished images to verify, chosen at random")] = 20,
    every: Annotated[bool, typer.Option("--all", help="Verify every finished image")] = False,
    seed: Annotated[int, typer.Option(metavar="SEED", help="Seed of the random choice")] = 0,
    model: options.WorkerModel = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="auto, float32, float16 or bfloat16 [default: from each receipt]"),
    ] = None,
    tolerance: Annotated[
        bool,
        typer.Option("--tolerance", help="Allow small differences even where the bytes should be equal"),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Render images of a batch again from their receipts, and compare them with the stored ones.

    It needs the model but no worker. Exit code 1: an image differs.

    It takes dtype, quantization, micro-batch and CPU threads from the receipt. On the same kind of GPU or CPU, with
    the same torch and cuDNN, the bytes must be equal. Otherwise it prints which conditions differ, and no channel of a
    pixel may differ by more than 2/255, by 64/255 if a dtype is not float32, and by 32/255 more in a JPEG.

    Example: `latentfarm verify cats --sample 20`
    """
    if dtype is not None:
        check_dtype(dtype)
    farm = Farm.from_env()
    settings = with_model(farm.settings, model)
    require_worker_packages()
    found = farm.batch(batch)
    if model is None:
        settings = of_model(settings, farm.ledger.batch(batch).model)
    from latentfarm_worker.tools.verification import Verification, sample_finished

    done = farm.ledger.batch(batch).done
    chosen = sample_finished(found, None if every else sample, seed=seed)
    echo_err("loading the model ...")
    run = Verification(found, settings, dtype=dtype, tolerance=tolerance)
    tally = _Tally()
    with CountProgress("verifying", done if every else min(sample, done)) as progress:
        for result in run.run(chosen):
            tally.add(result)
            progress.show(tally.images)
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
    """The results, counted, with those that differ."""

    def __init__(self) -> None:
        self.images = self.same_bytes = self.within_bound = self.bound = self.largest = 0
        self.different: list[ComparisonResult] = []
        #: images by the conditions that differed from those of their receipts
        self.other_conditions: Counter[str] = Counter()

    def add(self, result: ComparisonResult) -> None:
        self.images += 1
        if result.other_conditions:
            self.other_conditions["; ".join(result.other_conditions)] += 1
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
            "equal bytes": self.same_bytes,
            f"within {self.bound}/255, the largest difference is {self.largest}/255": self.within_bound,
            "different": len(self.different),
        }
        lines = [f"{count} of {self.images} images: {what}" for what, count in counts.items() if count]
        others = self.other_conditions.most_common()
        return "\n".join([*lines, *(f"other conditions for {count} of them: {what}" for what, count in others)])

    def as_dict(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "same_bytes": self.same_bytes,
            "within_bound": self.within_bound,
            "bound": self.bound,
            "largest_difference": self.largest,
            "other_conditions": dict(self.other_conditions),
            "different": [
                {"job": each.job, "differences": list(each.differences), "largest_difference": each.largest_difference}
                for each in self.different
            ],
        }

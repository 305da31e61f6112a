"""``workers``: the live workers with their throughput, and what they have announced of their models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.output import echo_err, format_duration, print_columns, print_json
from latentfarm.cli.shared import worker_data
from latentfarm.farm import Farm
from latentfarm.ledger import WorkerRecord
from latentfarm.names import check_model_alias

if TYPE_CHECKING:
    from latentfarm.model_facts import ModelFacts

_COLUMNS = ("worker", "model", "device", "dtype", "slots", "up", "images", "images/s", "busy")
_MODEL_COLUMNS = ("model", "pipeline", "size", "sides", "steps", "guidance", "tokens", "licence")


def workers(
    model: Annotated[
        str | None, typer.Option("--model", metavar="ALIAS", help="Only workers of this model [default: all]")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the live workers with their throughput over the last two minutes, and their models.

    `busy` is the share of the time that the engine spent in denoising steps; a worker that is `draining` takes no more
    jobs. `up` and `images` count from the first start; a restart by the supervisor does not reset them. Of a model, the
    sides of images are multiples of `sides`, and rows that set no steps or guidance get those that are listed.

    Example: `latentfarm workers`
    """
    farm = Farm.from_env()
    found = farm.workers(None if model is None else check_model_alias(model))
    known = farm.ledger.all_model_facts() if found else {}
    if as_json:
        facts = {name: each.model_dump() for name, each in known.items()}
        print_json([{**worker_data(each), "model_facts": facts.get(each.model)} for each in found])
    elif found:
        print_columns([_COLUMNS, *(_row(each) for each in found)])
        _print_models(sorted({each.model for each in found} & known.keys()), known)
    else:
        which = f"serves {model!r}" if model else "is running"
        echo_err(f"no worker {which} now; start one with `latentfarm worker`")


def _row(worker: WorkerRecord) -> tuple[str, ...]:
    return (
        worker.name,
        worker.model,
        f"{worker.device} ({worker.device_name})",
        worker.dtype,
        str(worker.slots),
        format_duration((worker.seen_ms - worker.since_ms) / 1000),
        str(worker.images),
        "-" if worker.images_per_s is None else f"{worker.images_per_s:.2f}",
        "draining" if worker.draining else "-" if worker.busy_share is None else f"{worker.busy_share:.0%}",
    )


def _print_models(names: list[str], known: dict[str, ModelFacts]) -> None:
    if names:
        typer.echo()
        print_columns([_MODEL_COLUMNS, *(_model_row(name, known[name]) for name in names)])


def _model_row(name: str, facts: ModelFacts) -> tuple[str, ...]:
    return (
        name,
        facts.pipeline,
        f"{facts.native_width}x{facts.native_height}",
        str(facts.pixel_multiple),
        str(facts.num_inference_steps),
        f"{facts.guidance_scale:g}",
        str(facts.max_prompt_tokens),
        facts.licence or "-",
    )

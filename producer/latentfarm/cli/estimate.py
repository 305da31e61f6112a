"""``estimate``: the images, bytes and GPU time of a prompt file."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.amounts import parse_amount
from latentfarm.cli.output import echo_err, echo_notes, format_duration, plural, print_json
from latentfarm.cli.prompt_options import Rows, input_policy, prompt_options, source_client
from latentfarm.cli.shared import fail_if
from latentfarm.errors import InputError, LatentfarmError, format_counts
from latentfarm.ledger import Ledger
from latentfarm.model_spec import ModelSpec, parse_model
from latentfarm.names import DEFAULT_MODEL
from latentfarm.settings import Settings
from latentfarm.submission.draft_estimate import StepCost
from latentfarm.submission.estimate import Estimate, make_estimate
from latentfarm.submission.request import make_request

_ADAPTERS = {
    "lora": "LoRAs",
    "embedding": "embeddings",
    "controlnet": "ControlNets",
    "ip_adapter": "IP-Adapters",
    "refiner": "refiners",
}


@prompt_options
def estimate(
    file: options.PromptFile,
    rows: Rows,
    model: options.RenderModel = DEFAULT_MODEL,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep", metavar="SHARE", help="Share of the drafts that is finished, such as 10% [default: all]"
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Estimate the images, bytes and GPU time of a prompt file. Nothing is submitted.

    Bytes and GPU time come from the throughput that the farm's workers have reported, token counts from the model's
    tokenizer, and the steps and guidance of rows that set none from what workers have announced of the model. With
    --draft, it also states the steps of the drafts, those of finishing --keep of them, and those that are saved. Exit
    code 1: some rows are invalid.

    Example: `latentfarm estimate prompts.jsonl --sweep seed=1..4`
    """
    kept = 1.0 if keep is None else parse_amount("--keep", keep, zero=True)
    if kept > 1:
        raise InputError(f"--keep {keep!r}: write a share such as 0.1 or 10%")
    settings = Settings.load()
    spec = _parse_model_or_alias(model)
    request = make_request(
        file,
        rows.reading,
        client=source_client(settings),
        inputs=input_policy(settings, file),
        model=spec.alias,
        expansion=rows.expansion,
        **rows.defaults,
    )
    throughput, workers = None, 0
    if settings.configured:
        ledger = Ledger.connect(settings.redis_url)
        throughput, workers = ledger.throughput(spec.alias), len(ledger.workers(spec.alias))
        request = request.with_facts(ledger.model_facts(spec.alias))
    found = make_estimate(request, throughput=throughput, count_tokens=_token_counter(spec), keep=kept)
    if keep is not None and found.drafts is None:
        raise InputError(f"--keep {keep!r}: no row stops as a draft; add --draft, such as --draft 0.3")
    if as_json:
        print_json({**found.model_dump(), "workers": workers})
    else:
        _print(found, workers)
    fail_if(found.invalid)


def _parse_model_or_alias(model: str) -> ModelSpec:
    """Return the model as a worker parses it, else as an alias whose weights are unknown here."""
    try:
        return parse_model(model)
    except LatentfarmError:
        return ModelSpec(model, source="")


def _token_counter(spec: ModelSpec) -> Callable[[str], int] | None:
    if (not spec.source and spec.alias != DEFAULT_MODEL) or find_spec("transformers") is None:
        return None
    from latentfarm_worker.models import token_counter

    return token_counter(spec.source)


def _print(found: Estimate, workers: int) -> None:
    unknown = f"unknown: no worker has rendered with {found.model!r} yet"
    lines = {
        "rows": f"{found.rows:,}",
        "invalid": f"{found.invalid:,}{format_counts(found.reasons)}",
        "duplicates": f"{found.duplicates:,}",
        f"over {found.max_prompt_tokens} tokens": _format_tokens(found),
        "images": f"{found.jobs:,}",
        "defaults": f"{plural(found.num_inference_steps, 'step')}, guidance scale {found.guidance_scale:g}",
        "steps": f"{found.steps:,}",
        **({"shared steps": _format_shared(found)} if found.shared_steps else {}),
        **({"input images": f"{found.inputs:,}"} if found.inputs else {}),
        **{_ADAPTERS[kind]: ", ".join(names) for kind, names in found.adapters.items()},
        "size": unknown if found.size_bytes is None else _format_size(found.size_bytes),
        **_draft_lines(found),
        "GPU time": unknown if found.gpu_hours is None else _format_hours(found.gpu_hours, workers),
    }
    for name, text in lines.items():
        typer.echo(f"{name:<15} {text}")
    echo_notes(found.notes)
    for problem in found.problems:
        echo_err(problem)
    if found.invalid > len(found.problems):
        echo_err(f"... and {found.invalid - len(found.problems)} more")


def _format_tokens(found: Estimate) -> str:
    if found.over_max_tokens is None:
        return "unknown: install latentfarm[worker], and name the model's folder with --model"
    return f"{found.over_max_tokens:,}"


def _draft_lines(found: Estimate) -> dict[str, str]:
    drafts = found.drafts
    if drafts is None:
        return {}
    total = drafts.made.steps + drafts.finish.steps + drafts.saved.steps
    return {
        "drafts": f"{plural(drafts.jobs, 'image')}: {_format_cost(drafts.made)}",
        "finishing": f"{100 * drafts.keep:g}% of them: {_format_cost(drafts.finish)}",
        "saved": f"{_format_cost(drafts.saved)} ({drafts.saved.steps / total:.0%})",
    }


def _format_cost(cost: StepCost) -> str:
    steps = plural(cost.steps, "step")
    return steps if cost.gpu_hours is None else f"{steps}, {cost.gpu_hours:,.2f} h"


def _format_shared(found: Estimate) -> str:
    return f"{found.shared_steps:,} ({found.shared_steps / found.steps:.0%}) are made once for images that begin alike"


def _format_size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.3g} TB"


def _format_hours(gpu_hours: float, workers: int) -> str:
    seconds = gpu_hours * 3600
    text = f"{gpu_hours:,.2f} h ({format_duration(seconds)}) on one worker"
    return f"{text}; {format_duration(seconds / workers)} on the {workers} live workers" if workers > 1 else text

"""``plan``: what a file would become and cost."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import typer

from latentfarm.cli import options
from latentfarm.cli.options import print_json
from latentfarm.cli.progress import duration, echo_err
from latentfarm.errors import LatentfarmError, counted
from latentfarm.job import MAX_TOKENS
from latentfarm.ledger import Ledger
from latentfarm.model_spec import ModelSpec, parse_model
from latentfarm.settings import DEFAULT_MODEL, Settings
from latentfarm.submission.estimate import Estimate, make_estimate
from latentfarm.submission.request import make_request


@options.prompt_options
def plan(
    file: options.PromptFile,
    rows: options.Rows,
    model: options.PlannedModel = DEFAULT_MODEL,
    as_json: options.Json = False,
) -> None:
    """Say what a prompt file would become and cost; nothing is submitted. Exit 1 if rows are wrong.

    Bytes and GPU-hours come from what the farm's workers have measured, tokens from the model's own tokenizer.

    Example: `latentfarm plan prompts.jsonl --sweep seed=1..4`
    """
    settings = Settings.load()
    spec = _spec(model)
    request = make_request(
        file,
        rows.reading,
        client=options.source_client(settings),
        model=spec.alias,
        expansion=rows.expansion,
        **rows.defaults,
    )
    speed, workers = None, 0
    if settings.configured:
        ledger = Ledger.connect(settings.redis_url)
        speed, workers = ledger.throughput(spec.alias), len(ledger.workers(spec.alias))
    found = make_estimate(request, speed=speed, count_tokens=_token_counter(spec))
    if as_json:
        print_json({**found.model_dump(), "workers": workers})
    else:
        _print(found, workers)
    if found.invalid:
        raise typer.Exit(1)


def _spec(model: str) -> ModelSpec:
    """Return the model by what a worker would be given, else the alias that workers serve, its weights unknown."""
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
    unknown = f"unknown: no worker has rendered for {found.model!r} yet"
    lines = {
        "rows": f"{found.rows:,}",
        "invalid": f"{found.invalid:,}{counted(found.reasons)}",
        "duplicates": f"{found.duplicates:,}",
        f"over {MAX_TOKENS} tokens": _tokens(found),
        "pictures": f"{found.jobs:,}",
        "size": unknown if found.size_bytes is None else _size(found.size_bytes),
        "GPU time": unknown if found.gpu_hours is None else _hours(found.gpu_hours, workers),
    }
    for name, text in lines.items():
        typer.echo(f"{name:<15} {text}")
    for problem in found.problems:
        echo_err(problem)
    if found.invalid > len(found.problems):
        echo_err(f"... and {found.invalid - len(found.problems)} more")


def _tokens(found: Estimate) -> str:
    if found.over_77_tokens is None:
        return "unknown: install latentfarm[worker], and name the model's folder with --model"
    return f"{found.over_77_tokens:,}"


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.3g} TB"


def _hours(gpu_hours: float, workers: int) -> str:
    text = f"{gpu_hours:,.2f} h ({duration(gpu_hours * 3600)}) of one worker"
    return f"{text}; {duration(gpu_hours * 3600 / workers)} on the {workers} that are up" if workers > 1 else text


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(plan)

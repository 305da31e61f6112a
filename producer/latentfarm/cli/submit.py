"""``submit``: hand a prompt file in."""

from __future__ import annotations

from typing import Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.collect import exit_if, wait_for
from latentfarm.cli.options import print_json
from latentfarm.farm import Farm
from latentfarm.settings import DEFAULT_MODEL

Alias = Annotated[str, typer.Option("--model", metavar="ALIAS", help="The alias under which workers serve the model.")]


def submit(
    file: options.PromptFile,
    batch: options.NewBatch = None,
    model: Alias = DEFAULT_MODEL,
    num_inference_steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    width: options.Width = None,
    height: options.Height = None,
    seed: options.Seed = None,
    negative_prompt: options.Negative = None,
    scheduler: options.Scheduler = None,
    num_images_per_prompt: options.Images = None,
    trace: options.Trace = None,
    priority: options.Priority = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Return when every job has ended.")] = False,
    as_json: options.Json = False,
) -> None:
    """Check a prompt file, store its manifest and open the batch; print the batch's name.

    Nothing is enqueued if any row is wrong. The same file with the same options finds its batch again.

    Example: `latentfarm submit prompts.jsonl --batch cats --num-inference-steps 30`
    """
    farm = Farm.from_env()
    fields = options.defaults(
        num_inference_steps,
        guidance_scale,
        width,
        height,
        seed,
        negative_prompt,
        scheduler,
        num_images_per_prompt,
        trace,
    )
    submitted = farm.submit(file, batch=batch, model=model, priority=priority, **fields)
    if as_json:
        print_json({"batch": submitted.name, "model": model, "total": submitted.status().total})
    else:
        typer.echo(submitted.name)
    if wait:
        exit_if(wait_for(submitted).failed)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(submit)

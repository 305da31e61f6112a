"""``up`` and ``worker``: the processes that stay."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.options import check_dtype, with_model
from latentfarm.cli.progress import echo_err
from latentfarm.errors import InputError, UnavailableError
from latentfarm.local.farm import LocalFarm, devices_command, require_worker_packages, stop_on_signals, worker_command
from latentfarm.model_spec import parse_model
from latentfarm.settings import DEFAULT_MODEL, LOCAL_FOLDER, Settings

_LOOK_S = 0.5


def up(
    workers: options.Workers = 1,
    model: options.RenderModel = DEFAULT_MODEL,
    dtype: options.Dtype = None,
    slots: options.Slots = None,
) -> None:
    """Run Redis, an S3 server and workers in the foreground, below ./.latentfarm; Ctrl-C ends them all.

    Other commands run in the same folder find this farm by themselves. Nothing listens beyond this machine.

    Example: `latentfarm up --workers 2`
    """
    spec = parse_model(model)
    check_dtype(dtype or "auto")
    if workers:
        require_worker_packages()
    with stop_on_signals() as interrupted, LocalFarm(LOCAL_FOLDER) as stack:
        stack.start_workers(workers, spec, dtype=dtype or "auto", slots=slots or 0)
        echo_err(f"Redis   {stack.settings.redis_url}")
        echo_err(f"S3      {stack.settings.s3_endpoint_url}, bucket {stack.settings.bucket}")
        echo_err(f"workers {workers}, model {spec.alias}; logs in {LOCAL_FOLDER / 'logs'}")
        echo_err("up; Ctrl-C ends everything")
        _watch(stack, interrupted.wait)


def _watch(stack: LocalFarm, interrupted: Callable[[float], bool]) -> None:
    """Return when interrupted, telling of workers that end meanwhile; the servers must not."""
    told: set[int] = set()
    while not interrupted(_LOOK_S):
        for child in stack.workers:
            if child.pid not in told and child.exit_code() is not None:
                told.add(child.pid)
                echo_err(f"{child.name} ended with exit code {child.exit_code()}; its log is {child.log}")
        if stack.workers and len(told) == len(stack.workers):
            raise UnavailableError(
                f"no worker is left; {stack.workers[-1].log} ends with:\n{stack.workers[-1].log_tail()}"
            )
        for child in stack.children:
            if child not in stack.workers:
                child.require_alive()


def worker(
    model: options.WorkerModel = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, float16 or bfloat16. (env: LATENTFARM_DTYPE)")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(min=0, max=256, help="Pictures denoised at once; 0: measured once. (env: LATENTFARM_SLOTS)"),
    ] = None,
    compiled: options.Compile = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(
            "--deterministic/--no-deterministic",
            help="Make an image's bytes independent of its neighbours. [default: deterministic] "
            "[env: LATENTFARM_DETERMINISTIC]",
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            help="A worker for each: `all` GPUs, cpu:N, or GPUs such as 0,1; else one worker. (env: LATENTFARM_DEVICES)"
        ),
    ] = None,
    no_supervisor: Annotated[
        bool, typer.Option("--no-supervisor", help="Run the worker bare: nobody restarts it or ends it if it hangs.")
    ] = False,
) -> None:
    """Run one worker in the foreground, or one a device: it holds the model and renders what the farm has for it.

    A small supervisor starts it anew when it dies or hangs. Asked to end, it finishes what it can; asked twice, it
    gives everything back and ends at once.

    Example: `latentfarm worker --model sd14=CompVis/stable-diffusion-v1-4`
    """
    settings = Settings.load().require()
    require_worker_packages()
    settings = with_model(settings, model)
    chosen = {
        "dtype": dtype and check_dtype(dtype),
        "slots": slots,
        "compile": compiled,
        "deterministic": deterministic,
    }
    settings = settings.model_copy(update={name: value for name, value in chosen.items() if value is not None})
    # the worker reads its settings from the environment, as under `celery -A latentfarm_worker worker`
    os.environ |= settings.environment()
    each = settings.devices if devices is None else devices
    if each and no_supervisor:
        raise InputError("--devices runs a supervisor for each device; leave out one of it and --no-supervisor")
    if no_supervisor:
        from latentfarm_worker.service.tasks import serve

        raise typer.Exit(serve())
    # in place of this process, which has imported more than a supervisor needs
    command = devices_command(settings, each) if each else worker_command(settings)
    os.execv(command[0], command)  # noqa: S606 (there is no shell)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(up)
    app.command()(worker)

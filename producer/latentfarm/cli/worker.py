"""``up`` and ``worker``: the long-running processes of a farm."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.model_options import (
    Base,
    Revision,
    Vae,
    Variant,
    with_model_options,
    with_options_of_model,
)
from latentfarm.cli.options import check_dtype, check_quantization, check_text_encoder, with_models
from latentfarm.cli.output import echo_err
from latentfarm.errors import InputError, UnavailableError
from latentfarm.farm_folder import explain_outage
from latentfarm.local.farm import LocalFarm, require_worker_packages, stop_on_signals, worker_command
from latentfarm.local.http_server import LocalServer, has_server_packages, require_server_packages
from latentfarm.model_spec import parse_models
from latentfarm.monitoring.listen_address import parse_address
from latentfarm.names import DEFAULT_MODEL
from latentfarm.server.settings import ServerSettings
from latentfarm.settings import LOCAL_FOLDER, Settings

_POLL_S = 0.5
_DISK_POLL_S = 5.0


def up(
    workers: options.Workers = 1,
    model: options.UpModels = None,
    base: Base = None,
    vae: Vae = None,
    variant: Variant = None,
    revision: Revision = None,
    dtype: options.Dtype = None,
    slots: options.Slots = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="HTTP server's address [default: 127.0.0.1:7860] [env: LATENTFARM_SERVER_ADDRESS]",
        ),
    ] = None,
    server: Annotated[
        bool | None,
        typer.Option("--server/--no-server", help="Run the HTTP server [default: if its packages are installed]"),
    ] = None,
) -> None:
    """Run Redis, an S3 server, workers and the HTTP server in the foreground. Ctrl-C stops them all.

    The data is kept in ./.latentfarm. Commands in the same folder use this farm. It listens on this machine only.

    Example: `latentfarm up --workers 2`
    """
    models = with_model_options(
        parse_models(model or [DEFAULT_MODEL]), base=base, vae=vae, variant=variant, revision=revision
    )
    checked = check_dtype(dtype)
    if workers:
        require_worker_packages()
    if server:
        require_server_packages()
    if address is not None:
        parse_address(address, name="--address")
    served = server is not False and has_server_packages()
    server_settings = ServerSettings.load(**({} if address is None else {"address": address}))
    with stop_on_signals() as stopped, LocalFarm(LOCAL_FOLDER) as farm:
        farm.start_workers(workers, models, dtype=checked, slots=slots or 0)
        http_server = farm.start_http_server(server_settings.address) if served else None
        echo_err(f"Redis   {farm.settings.redis_url}")
        echo_err(f"S3      {farm.settings.s3_endpoint_url}, bucket {farm.settings.bucket}")
        named = f"model{'s' if len(models) > 1 else ''} {', '.join(spec.alias for spec in models)}"
        echo_err(f"workers {workers}, {named}; logs in {LOCAL_FOLDER / 'logs'}")
        if http_server is not None:
            echo_err(f"server  {_url_of(http_server, required='address' in server_settings.model_fields_set)}")
        echo_err("up; Ctrl-C stops everything")
        _watch(farm, stopped.wait)


def _url_of(http_server: LocalServer, *, required: bool) -> str:
    """Return the URL of the server, or why it does not run. The farm works without it unless its address was chosen."""
    try:
        return http_server.wait_for_url()
    except UnavailableError as error:
        if required:
            raise
        return f"none: {error}"


def _watch(farm: LocalFarm, stopped: Callable[[float], bool]) -> None:
    """Report processes that end, until a stop is requested. If a store or the last worker ends, raise an error."""
    http_server = farm.http_server if farm.http_server and farm.http_server.exit_code() is None else None
    ended: set[int] = set()
    reported: str | None = None
    check_at = 0.0
    while not stopped(_POLL_S):
        for child in farm.workers:
            if child.pid not in ended and child.exit_code() is not None:
                ended.add(child.pid)
                echo_err(f"{child.name} ended with exit code {child.exit_code()}; its log is {child.log}")
        if http_server is not None and (code := http_server.exit_code()) is not None:
            echo_err(f"{http_server.name} ended with exit code {code}; its log is {http_server.log}")
            http_server = None
        if farm.workers and len(ended) == len(farm.workers):
            last = farm.workers[-1]
            raise UnavailableError(f"no worker is left; {last.log} ends with:\n{last.log_tail()}")
        farm.require_servers()
        if time.monotonic() > check_at:
            outage, check_at = explain_outage(), time.monotonic() + _DISK_POLL_S
            if outage != reported:
                reported = outage
                echo_err(outage or "the farm can store its data again")


def worker(
    model: options.WorkerModels = None,
    base: Base = None,
    vae: Vae = None,
    variant: Variant = None,
    revision: Revision = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE", help="auto, float32, float16 or bfloat16 [default: auto] [env: LATENTFARM_DTYPE]"
        ),
    ] = None,
    quantization: options.Quantization = None,
    text_encoder: options.TextEncoder = None,
    slots: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=256,
            metavar="N",
            help="Images denoised at once [default: fastest] [env: LATENTFARM_SLOTS]",
        ),
    ] = None,
    compiled: options.Compile = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(
            "--deterministic/--no-deterministic",
            help="Same bytes in any batch [default: yes] [env: LATENTFARM_DETERMINISTIC]",
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICES",
            help="Run a worker on each: all, cpu:N or 0,1 [env: LATENTFARM_DEVICES]",
        ),
    ] = None,
    no_supervisor: Annotated[
        bool, typer.Option("--no-supervisor", help="Do not restart a worker that dies or hangs")
    ] = False,
) -> None:
    """Run a worker in the foreground, or one on each device. It loads the model and renders the farm's jobs.

    A supervisor restarts it if it dies or hangs. The first stop request (Ctrl-C or SIGTERM) lets it park or finish
    its images within the shutdown timeout. The second one ends it at once. Several models render in turns.

    Example: `latentfarm worker --model sd14=CompVis/stable-diffusion-v1-4`
    """
    settings = Settings.load().require()
    require_worker_packages()
    settings = with_models(settings, model or [])
    settings = with_options_of_model(settings, base=base, vae=vae, variant=variant, revision=revision)
    chosen = {
        "dtype": None if dtype is None else check_dtype(dtype),
        "quantization": check_quantization(quantization),
        "text_encoder": check_text_encoder(text_encoder),
        "slots": slots,
        "compile": compiled,
        "deterministic": deterministic,
        "devices": devices,
    }
    settings = settings.model_copy(update={name: value for name, value in chosen.items() if value is not None})
    if settings.devices and no_supervisor:
        raise InputError("--devices needs a supervisor: write --devices or --no-supervisor, not both")
    # the worker reads its settings from the environment, as it does under `celery -A latentfarm_worker worker`
    os.environ |= settings.environment()
    if no_supervisor:
        from latentfarm_worker.service.tasks import serve

        raise typer.Exit(serve())
    # replace this process: it has imported more than a supervisor needs
    command = worker_command(settings, devices=settings.devices)
    os.execv(command[0], command)  # noqa: S606 (there is no shell)

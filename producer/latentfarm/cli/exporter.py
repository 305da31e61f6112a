"""``exporter``: the farm's jobs for Prometheus and for KEDA."""

from __future__ import annotations

from typing import Annotated

import typer

from latentfarm.cli.progress import echo_err
from latentfarm.job import check_model_alias
from latentfarm.ledger import Ledger
from latentfarm.local.farm import stop_on_signals
from latentfarm.monitoring import logs
from latentfarm.monitoring.exporter import DEFAULT_ADDRESS, make_registry
from latentfarm.monitoring.http_server import MetricsServer
from latentfarm.settings import Settings


def exporter(
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help=f"Where to serve; {DEFAULT_ADDRESS} if open. (env: LATENTFARM_METRICS_ADDRESS)"
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="ALIAS", help="Tell of this model even while it has no batch and no worker; repeatable."),
    ] = None,
) -> None:
    """Serve the farm's jobs by batch and model at /metrics, beside /livez and /readyz, until it is ended.

    It reads the ledger at each scrape and writes nothing; one is enough for a farm, and two do no harm.

    Example: `latentfarm exporter --listen 0.0.0.0:9465 --model mini`
    """
    settings = Settings.load().require()
    logs.configure(settings.log_format, process="exporter")
    models = [check_model_alias(alias) for alias in model or []]
    ledger = Ledger.connect(settings.redis_url)
    address = listen or settings.metrics_address or DEFAULT_ADDRESS
    with stop_on_signals() as interrupted:
        # it is as alive and ready as its answers: a ledger that is away is told by latentfarm_ledger_up
        server = MetricsServer(address, make_registry(ledger, models), live=str, ready=str)
        echo_err(f"serving port {server.port}: /metrics, /livez and /readyz; Ctrl-C ends it")
        interrupted.wait()
        server.close()


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(exporter)

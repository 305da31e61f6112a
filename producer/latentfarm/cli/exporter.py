"""``exporter``: the metrics of a farm for Prometheus and KEDA."""

from __future__ import annotations

from typing import Annotated

import typer

from latentfarm.cli.output import echo_err
from latentfarm.ledger import Ledger
from latentfarm.local.farm import stop_on_signals
from latentfarm.monitoring import logs
from latentfarm.monitoring.exporter import DEFAULT_ADDRESS, make_registry
from latentfarm.monitoring.http_server import MetricsServer
from latentfarm.monitoring.listen_address import parse_address
from latentfarm.names import check_model_alias
from latentfarm.settings import Settings


def exporter(
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help=f"Address to serve [default: {DEFAULT_ADDRESS}] [env: LATENTFARM_METRICS_ADDRESS]",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="ALIAS", help="Export this model even without a batch and a worker (repeatable)"),
    ] = None,
) -> None:
    """Serve the jobs by batch and model at /metrics, with /livez and /readyz, until Ctrl-C.

    It reads the ledger at each scrape and writes nothing. One exporter serves a whole farm; several do no harm.

    Example: `latentfarm exporter --listen 0.0.0.0:9465 --model mini`
    """
    if listen is not None:
        parse_address(listen, name="--listen")
    settings = Settings.load().require()
    logs.configure(settings.log_format, process="exporter")
    models = [check_model_alias(alias) for alias in model or []]
    ledger = Ledger.connect(settings.redis_url)
    address = listen or settings.metrics_address or DEFAULT_ADDRESS
    with stop_on_signals() as interrupted:
        # alive and ready as soon as it answers: latentfarm_ledger_up reports an unavailable ledger
        server = MetricsServer(address, make_registry(ledger, models), live=str, ready=str)
        echo_err(f"serving port {server.port}: /metrics, /livez and /readyz; Ctrl-C stops it")
        interrupted.wait()
        server.close()

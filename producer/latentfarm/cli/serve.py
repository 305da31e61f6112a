"""``serve``: the HTTP server of a farm."""

from __future__ import annotations

from typing import Annotated

import typer

from latentfarm.cli.output import echo_err
from latentfarm.local.http_server import require_server_packages
from latentfarm.monitoring import logs
from latentfarm.monitoring.listen_address import parse_address
from latentfarm.settings import Settings


def serve(
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Address to serve [default: 127.0.0.1:7860] [env: LATENTFARM_SERVER_ADDRESS]",
        ),
    ] = None,
) -> None:
    """Serve the farm over HTTP until Ctrl-C: OpenAI's and AUTOMATIC1111's protocols, and the farm's own.

    It keeps nothing: any number of servers serve one farm. Redis and the bucket may be unavailable at its start.

    Example: `latentfarm serve --address 127.0.0.1:7860`
    """
    require_server_packages()
    from latentfarm.farm import Farm
    from latentfarm.server.app import make_app
    from latentfarm.server.http.process import HttpServer, allow_connections, listen, url_of
    from latentfarm.server.settings import ServerSettings

    if address is not None:
        parse_address(address, name="--address")
    server_settings = ServerSettings.load(**({} if address is None else {"address": address}))
    settings = Settings.load().require()
    logs.configure(settings.log_format, process="server")
    allow_connections(server_settings.max_connections)
    # it checks the keys that an address needs, before the address is taken
    app = make_app(Farm.open(settings), server_settings)
    with listen(server_settings.address) as listener:
        server = HttpServer(
            app,
            max_connections=server_settings.max_connections,
            shutdown_timeout_s=server_settings.shutdown_timeout_s,
        )
        echo_err(f"serving {url_of(listener)}; Ctrl-C stops it")
        server.run_on(listener)

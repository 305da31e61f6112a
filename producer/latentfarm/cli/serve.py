"""``serve``: the HTTP server of a farm."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from latentfarm.cli.output import echo_err
from latentfarm.errors import InputError
from latentfarm.monitoring import logs
from latentfarm.settings import Settings

#: of the extra `server`
_PACKAGES = ("starlette", "uvicorn", "python_multipart")


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
    from latentfarm.server.http.process import HttpServer, listen, url_of
    from latentfarm.server.settings import ServerSettings

    server_settings = ServerSettings.load(**({} if address is None else {"address": address}))
    settings = Settings.load().require()
    logs.configure(settings.log_format, process="server")
    with listen(server_settings.address) as listener:
        app = make_app(Farm.open(settings), server_settings)
        server = HttpServer(
            app,
            max_connections=server_settings.max_connections,
            shutdown_timeout_s=server_settings.shutdown_timeout_s,
        )
        echo_err(f"serving {url_of(listener)}; Ctrl-C stops it")
        server.run_on(listener)


def require_server_packages() -> None:
    """Check that a server can run here.

    Raises:
        InputError: A package is missing. The message names the extra to install.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"the server needs {', '.join(missing)}: pip install 'latentfarm[server]'")

"""A command in this process, for tests of many commands."""

from __future__ import annotations

from typer.testing import CliRunner

from latentfarm.cli import app
from latentfarm.errors import LatentfarmError
from latentfarm.settings import Settings


def invoke(settings: Settings, *words: str) -> tuple[int, str]:
    """Run a command as ``main`` does; return its exit code, and its error if it has one, else its output.

    An error that is not latentfarm's would be a traceback, and is raised.
    """
    ran = CliRunner().invoke(app, words, env=settings.environment())
    error = ran.exception
    if isinstance(error, LatentfarmError):
        return error.exit_code, str(error)
    if isinstance(error, TimeoutError):
        return 1, str(error)
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return ran.exit_code, ran.output

"""The command ``latentfarm``: a thin skin over the Python API, one module a group of verbs.

Data goes to stdout, progress and errors to stderr. Exit codes: 0 all done, 1 some job failed, 2 bad input or usage,
3 store or queue not to be reached, 130 interrupted.
"""

from __future__ import annotations

import signal
import sys

import typer

from latentfarm.cli import (
    bench,
    control,
    doctor,
    estimate,
    exporter,
    fetch,
    recover,
    render,
    results,
    status,
    submit,
    verify,
    worker,
    workers,
)
from latentfarm.errors import LatentfarmError

app = typer.Typer(
    help="A render farm for latent diffusion: a prompt file in, pictures and a manifest in your own bucket out.",
    epilog="Start here: `latentfarm render prompts.txt -o out`",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
render.register(app)
worker.register(app)
submit.register(app)
estimate.register(app)
status.register(app)
control.register(app)
workers.register(app)
fetch.register(app)
results.register(app)
verify.register(app)
recover.register(app)
doctor.register(app)
exporter.register(app)
bench.register(app)


def main() -> None:
    """Run the command; errors of ours become a line and an exit code, all others keep their traceback."""
    # asked to end is like Ctrl-C: what was started is stopped in order, and unfinished jobs go back
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except LatentfarmError as error:
        sys.stderr.write(f"latentfarm: {error}\n")
        sys.exit(error.exit_code)
    except TimeoutError as error:
        sys.stderr.write(f"latentfarm: {error}\n")
        sys.exit(1)
    except BrokenPipeError:
        # the reader of our output has seen enough
        sys.stderr.close()
        sys.exit(0)

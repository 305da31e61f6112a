"""The command ``latentfarm``: thin commands over the Python API, one module for each group of them.

Data goes to stdout, progress and errors to stderr. Exit codes: 0 success, 1 a job failed, 2 invalid input or usage,
3 the store or Redis is unavailable, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import platform
import signal
import sys
from typing import Annotated, NoReturn

import typer

from latentfarm import __version__
from latentfarm.cli.command_group import CommandEntry, make_group
from latentfarm.cli.output import describe_file_error, discard_stdout, echo_err, flush_stderr
from latentfarm.errors import LatentfarmError, UnavailableError
from latentfarm.farm_folder import explain_outage

#: by heading: name, ``module:function``, and the summary that `latentfarm --help` prints without an import
COMMANDS = {
    "Run": {
        "render": CommandEntry("render:render", "Render a prompt file into a folder, with everything that this needs"),
        "up": CommandEntry("worker:up", "Run Redis, an S3 server and workers on this machine"),
        "worker": CommandEntry("worker:worker", "Run a worker of a farm"),
        "serve": CommandEntry("serve:serve", "Serve OpenAI's and AUTOMATIC1111's protocols, and the farm's own"),
    },
    "Submit": {
        "estimate": CommandEntry("estimate:estimate", "Estimate the images, bytes and GPU time of a prompt file"),
        "submit": CommandEntry("submit:submit", "Submit a prompt file as a batch"),
    },
    "Inspect": {
        "status": CommandEntry("status:status", "Show the progress of one batch or all"),
        "watch": CommandEntry("watch:watch", "Show the progress of batches until they end"),
        "jobs": CommandEntry("jobs:jobs", "List the jobs of a batch"),
        "job": CommandEntry("jobs:job", "Show one job"),
        "workers": CommandEntry("workers:workers", "List the workers with their throughput"),
    },
    "Drafts": {
        "drafts": CommandEntry("drafts:drafts", "List the drafts of a batch, or draw contact sheets of them"),
        "finish": CommandEntry("drafts:finish", "Render drafts of a batch to their end"),
        "discard": CommandEntry("drafts:discard", "End drafts of a batch without an image"),
    },
    "Control": {
        "pause": CommandEntry("control:pause", "Start no more jobs of batches"),
        "resume": CommandEntry("control:resume", "Continue paused batches"),
        "cancel": CommandEntry("control:cancel", "End batches for good"),
        "retry": CommandEntry("control:retry", "Run the failed jobs of a batch again"),
        "set-priority": CommandEntry("control:set_priority", "Change the priority of a batch"),
        "delete": CommandEntry("delete:delete", "Delete batches with their images and results"),
        "gc": CommandEntry("gc:gc", "Delete the orphaned images of a batch"),
    },
    "Results": {
        "wait": CommandEntry("fetch:wait", "Wait until a batch has ended"),
        "fetch": CommandEntry("fetch:fetch", "Download the images of a batch"),
        "results": CommandEntry("results:results", "Print the results of a batch"),
        "picks": CommandEntry("picks:picks", "List, change or export the picks and ratings of a batch's images"),
        "verify": CommandEntry("verify:verify", "Render images again and compare them with the stored ones"),
    },
    "Operate": {
        "key": CommandEntry("key:key", "Make an API key for the HTTP server"),
        "model": CommandEntry("model:model", "Describe a model: family, size, memory, licence and what is missing"),
        "doctor": CommandEntry("doctor:doctor", "Check Redis, the bucket, the model and the device"),
        "recover": CommandEntry("recover:recover", "Rebuild the ledger from the bucket"),
        "exporter": CommandEntry("exporter:exporter", "Serve metrics for Prometheus and KEDA"),
        "bench": CommandEntry("bench:bench", "Measure the throughput of a model on this machine"),
    },
}


app = typer.Typer(
    cls=make_group(COMMANDS),
    epilog="Start here: `latentfarm render prompts.txt -o out`",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # rich's panels cost 0.1 s of CPU and break an option's text into narrow columns
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 (typer calls it)
    if wanted:
        typer.echo(f"latentfarm {__version__} (Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _latentfarm(
    _version: Annotated[
        bool,
        typer.Option("-V", "--version", callback=_print_version, is_eager=True, help="Print the version and exit"),
    ] = False,
) -> None:
    """Render farm for latent diffusion: a prompt file in, images and a manifest in your own bucket out."""


def main() -> None:
    """Run the command. An error of latentfarm, or of a file, becomes one line and an exit code.

    Other errors keep their traceback.
    """
    _handle_signals()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a character that the locale's encoding lacks is no reason to end; in JSON the escape is valid
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            # at exit, Python would print a traceback if this failed
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except UnavailableError as error:
        # a farm in a folder knows why
        _fail(explain_outage() or str(error), error.exit_code)
    except LatentfarmError as error:
        _fail(str(error), error.exit_code)
    except TimeoutError as error:
        _fail(str(error), 1)
    except OSError as error:
        discard_stdout()
        if isinstance(error, BrokenPipeError):
            # the reader of stdout has closed it, as `head` does
            sys.exit(0)
        if (text := describe_file_error(error)) is None:
            raise
        _fail(text, 2)
    finally:
        flush_stderr()
        # a further interrupt ends the exit itself without a traceback
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def _handle_signals() -> None:
    # SIGTERM and a closed terminal act as Ctrl-C does: started processes stop in order, unfinished jobs are released
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for number in (signal.SIGINT, signal.SIGHUP):
        # a background job of a script ignores SIGINT, and `nohup` SIGHUP
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _fail(text: str, code: int) -> NoReturn:
    echo_err(f"latentfarm: {text}")
    sys.exit(code)

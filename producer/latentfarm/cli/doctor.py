"""``doctor``: whether everything is there that a farm needs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.options import print_json
from latentfarm.errors import InputError, LatentfarmError
from latentfarm.ledger import Ledger
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket


def doctor(
    as_json: options.Json = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Only ask whether the bucket is there; write nothing to it.")
    ] = False,
) -> None:
    """Check Redis, the bucket, the model and the device, a line each. Exit 1 if any is bad.

    An object under probe/ is put into the bucket, looked at, read and removed again.

    Example: `latentfarm doctor`
    """
    settings = Settings.load()
    checks: dict[str, Callable[[Settings], str]] = {
        "redis": _redis,
        "bucket": _bucket_is_there if read_only else _bucket_works,
        "model": _model,
        "device": _device,
    }
    findings = [_finding(name, check, settings) for name, check in checks.items()]
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            typer.echo(f"{'ok ' if finding['ok'] else 'BAD'}  {finding['check']:<7} {finding['text']}")
    if not all(finding["ok"] for finding in findings):
        raise typer.Exit(1)


def _finding(name: str, check: Callable[[Settings], str], settings: Settings) -> dict[str, object]:
    try:
        return {"check": name, "ok": True, "text": check(settings)}
    except LatentfarmError as error:
        return {"check": name, "ok": False, "text": " ".join(str(error).split())}


def _redis(settings: Settings) -> str:
    ledger = Ledger.connect(settings.require().redis_url)
    version = ledger.ping()
    waiting, workers = ledger.count_pending(settings.model), len(ledger.workers(settings.model))
    return f"Redis {version} at {ledger.where}; {workers} workers and {waiting} jobs for {settings.model}"


def _bucket_works(settings: Settings) -> str:
    bucket = Bucket.connect(settings.require())
    bucket.probe()
    return f"{bucket.where}; put, head, get and delete work"


def _bucket_is_there(settings: Settings) -> str:
    bucket = Bucket.connect(settings.require())
    bucket.check()
    return f"{bucket.where}; nothing was written"


def _model(settings: Settings) -> str:
    if find_spec("torch") is None:
        raise InputError(
            "no torch here, so no worker can run: pip install 'latentfarm[worker]' (submitting needs none)"
        )
    from latentfarm_worker.build import load_model

    family = load_model(settings)
    size = f"{family.native_width}x{family.native_height}"
    return f"{settings.model}: {family.name}, {size}, digest {family.model_digest[:12]}"


def _device(settings: Settings) -> str:
    if find_spec("torch") is None:
        raise InputError("no torch here, so no device can be used: pip install 'latentfarm[worker]'")
    from latentfarm_worker.build import pick_device, pick_dtype

    device = pick_device()
    return f"{device}, dtype {str(pick_dtype(settings.dtype, device)).removeprefix('torch.')}"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(doctor)

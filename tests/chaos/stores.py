"""Two S3 servers that know nothing of each other: rclone over plain files, and moto in memory."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from latentfarm.errors import UnavailableError
from latentfarm.local.process import ManagedProcess
from latentfarm.local.s3_server import BUCKET, start_s3
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket, MissingObjectError

StoreKind = Literal["rclone", "moto"]
_START_S = 60.0


def start_store(kind: StoreKind, folder: Path, *, log: Path) -> tuple[ManagedProcess, Settings]:
    """Start a store with its bucket; return it and settings that hold its address and keys."""
    return start_s3(folder, log=log) if kind == "rclone" else _start_moto(log)


def _start_moto(log: Path) -> tuple[ManagedProcess, Settings]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = ManagedProcess("moto", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], log=log)
    settings = Settings().model_copy(
        update={
            "bucket": BUCKET,
            "s3_endpoint_url": f"http://127.0.0.1:{port}",
            "s3_access_key": "chaos",
            "s3_secret_key": SecretStr("chaos-secret"),
            "s3_path_style": True,
        }
    )
    bucket, deadline = Bucket.connect(settings), time.monotonic() + _START_S
    while True:
        child.require_alive()
        try:
            bucket.head()
        except MissingObjectError:
            bucket.create()
            return child, settings
        except UnavailableError:
            if time.monotonic() > deadline:
                child.wait_or_kill(0)
                raise
            time.sleep(0.1)

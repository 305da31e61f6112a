"""What was measured on this machine, remembered: files that its workers share, so that one start finds out for all."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import torch
from pydantic import TypeAdapter

from latentfarm_worker.models.base import Family

T = TypeVar("T")
log = logging.getLogger(__name__)


class CalibrationCache(Generic[T]):
    """A file of them below the cache folder, by a key that says of what; its values are of type ``kind``."""

    def __init__(self, cache: Path, name: str, kind: type[T]) -> None:
        self._cache, self._name = cache, name
        self._record = TypeAdapter(dict[str, kind])  # type: ignore[valid-type]

    def find(self, key: str, measure: Callable[[], T]) -> tuple[T, bool]:
        """Return what is remembered, or measure it; and whether it was remembered.

        Only one process of a machine measures at a time, the others wait for what it finds.
        """
        with self._locked() as file:
            known = self._read(file)
            if key in known:
                return known[key], True
            found = measure()
            self._write(file, {**known, key: found})
        return found, False

    @contextmanager
    def _locked(self) -> Iterator[Path | None]:
        """Give the file to the one process that may use it; None where nothing can be written."""
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            lock = (self._cache / f"{self._name}.lock").open("w")
        except OSError as error:
            log.warning("what is measured is not remembered: %s; set LATENTFARM_CACHE_DIR to a folder of yours", error)
            yield None
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._cache / self._name

    def _read(self, file: Path | None) -> dict[str, T]:
        try:
            return self._record.validate_json(file.read_bytes()) if file is not None else {}
        except (OSError, ValueError):
            # there is none yet, or it is none of ours: it is written anew
            return {}

    def _write(self, file: Path | None, known: dict[str, T]) -> None:
        if file is not None:
            fresh = file.with_suffix(f".{os.getpid()}")
            fresh.write_bytes(self._record.dump_json(known, indent=1))
            fresh.replace(file)


def device_name(device: torch.device) -> str:
    """Return what tells a device from others, as far as a model's speed goes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def cache_key(family: Family, *details: str) -> str:
    """Return what a measurement holds for: the device, the model, its dtype, torch, and what else it depends on."""
    dtype = str(family.dtype).removeprefix("torch.")
    return ", ".join([device_name(family.device), family.model_digest, *details, dtype, f"torch {torch.__version__}"])

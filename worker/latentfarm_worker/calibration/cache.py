"""Calibration results, cached in files that the workers of a machine share, so that one of them measures for all."""

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
    """A JSON file ``name`` in the folder ``cache``: values of type ``kind`` by key."""

    def __init__(self, cache: Path, name: str, kind: type[T]) -> None:
        self._cache, self._name = cache, name
        self._record = TypeAdapter(dict[str, kind])  # type: ignore[valid-type]

    def find(self, key: str, measure: Callable[[], T]) -> tuple[T, bool]:
        """Return the cached value, or measure it; and whether it was cached.

        A file lock lets one process measure at a time. The others wait for its result.
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
        """Yield the locked file; None if the folder is not writable."""
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            lock = (self._cache / f"{self._name}.lock").open("w")
        except OSError as error:
            log.warning("calibration is not cached: %s; set LATENTFARM_CACHE_DIR to a writable folder", error)
            yield None
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._cache / self._name

    def _read(self, file: Path | None) -> dict[str, T]:
        try:
            return self._record.validate_json(file.read_bytes()) if file is not None else {}
        except (OSError, ValueError):
            # missing or invalid: it is written again
            return {}

    def _write(self, file: Path | None, known: dict[str, T]) -> None:
        if file is not None:
            fresh = file.with_suffix(f".{os.getpid()}")
            fresh.write_bytes(self._record.dump_json(known, indent=1))
            fresh.replace(file)


def device_name(device: torch.device) -> str:
    """Return a name that devices of equal speed share: the GPU's model, or the CPU's architecture and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def cache_key(family: Family, *details: str) -> str:
    """Return the conditions of a measurement: device, model, ``details``, dtype and torch version."""
    dtype = str(family.dtype).removeprefix("torch.")
    return ", ".join([device_name(family.device), family.model_digest, *details, dtype, f"torch {torch.__version__}"])

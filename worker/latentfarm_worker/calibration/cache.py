"""Calibration results, cached in files that the workers of a machine share, so that one of them measures for all."""

from __future__ import annotations

import fcntl
import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import torch

from latentfarm_worker.json_cache import JsonCache
from latentfarm_worker.models.base import Family

T = TypeVar("T")
log = logging.getLogger(__name__)


class CalibrationCache(Generic[T]):
    """A JSON file ``name`` in the folder ``cache``: values of type ``kind`` by key."""

    def __init__(self, cache: Path, name: str, kind: type[T]) -> None:
        self._cache, self._name, self._kind = cache, name, kind

    def find(self, key: str, measure: Callable[[], T]) -> tuple[T, bool]:
        """Return the cached value, or measure it; and whether it was cached.

        A file lock lets one process measure at a time. The others wait for its result.
        """
        with self._locked() as file:
            known = file.read() if file is not None else {}
            if key in known:
                return known[key], True
            found = measure()
            if file is not None:
                file.replace({**known, key: found})
        return found, False

    @contextmanager
    def _locked(self) -> Iterator[JsonCache[T] | None]:
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
            yield JsonCache(self._cache / self._name, self._kind)


def device_name(device: torch.device) -> str:
    """Return a name that devices of equal speed share: the GPU's model, or the CPU's architecture and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {threads} {'thread' if threads == 1 else 'threads'}"


def cache_key(family: Family, *details: str) -> str:
    """Return the conditions of a measurement: device, model, ``details``, dtype and torch version."""
    dtype = str(family.dtype).removeprefix("torch.")
    return ", ".join([device_name(family.device), family.model_digest, *details, dtype, f"torch {torch.__version__}"])

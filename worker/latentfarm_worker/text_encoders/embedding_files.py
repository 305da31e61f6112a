"""Encoded prompts on disk, for the next start of a worker and for the other workers of a machine.

A file is a safetensors file, whose metadata has a sha256 over its key and its tensors. It is written under another name
and then renamed, so a killed process leaves no half of one. If a file is damaged, it is dropped and its prompt is
encoded again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from latentfarm_worker.host_copy import receive
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors

log = logging.getLogger(__name__)

#: part of every key, to be changed with what an embedding means
_FORMAT = 1
_SUFFIX, _DRAFT = ".safetensors", ".draft"
#: bytes in host memory that wait for the disk; beyond it embeddings are not stored
_MAX_PENDING = 512 * 1024**2
#: a process lists the folder again when it has written this share of the bound ...
_LOOK_AFTER = 1 / 64
#: ... and leaves this share, so that eight processes together stay within the bound
_KEPT = 7 / 8
#: seconds by which a draft is older than the newest file when its process must be dead
_DRAFT_AGE_S = 3600.0


class _File(NamedTuple):
    """A file of the folder, ordered by its last use."""

    used_ns: int
    size: int
    path: Path


class EmbeddingFiles:
    """The embeddings in a folder, at most ``max_bytes`` of them: those not used for the longest time go first.

    Several processes may use a folder at once. ``get``, ``put`` and ``in`` belong to one thread; writing has its own.

    Args:
        folder: the folder; it is made when the first embedding is stored.
        conditions: what an embedding's bits depend on besides the prompt: weights, settings of the encoders, device.
            They must have a JSON form.
        max_bytes: bytes of all files; each process beyond the eighth may exceed it by a 64th.
    """

    def __init__(self, folder: Path, *, conditions: Mapping[str, Any], max_bytes: int) -> None:
        self._folder = folder
        self._conditions = hashlib.sha256(_canonical(dict(conditions))).hexdigest()
        self._max_bytes = max_bytes
        self._writer = ThreadPoolExecutor(1, "embeddings")
        #: by key: what is not written yet, and the event after which its copy from the device is complete
        self._pending: dict[str, tuple[Tensors, torch.cuda.Event | None]] = {}
        self._stream: torch.cuda.Stream | None = None
        #: of the writer's thread: bytes written since it listed the folder, and the number of files
        self._written, self._drafts = 0, 0
        self._writer.submit(self._guarded, self._trim)

    def key(self, prompt: Prompt) -> str:
        """Return the sha256 of all that the prompt's embedding depends on. It does not reveal the prompt."""
        inputs = [_FORMAT, self._conditions, asdict(prompt)]
        # a prompt may name embeddings of textual inversion, which their files' digests determine
        return hashlib.sha256(_canonical(inputs, default=attrgetter("digest"))).hexdigest()

    def __contains__(self, prompt: Prompt) -> bool:
        key = self.key(prompt)
        return key in self._pending or self._path(key).exists()

    def get(self, prompt: Prompt) -> Tensors | None:
        """Return a prompt's tensors in host memory, or None if there are none."""
        key = self.key(prompt)
        waiting = self._pending.get(key)
        if waiting is not None:
            tensors, copied = waiting
            if copied is not None:
                copied.synchronize()
            return tensors
        path = self._path(key)
        try:
            body = path.read_bytes()
        except OSError:
            return None
        try:
            tensors = _decode(key, body)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            log.warning("%s is damaged (%s): it is dropped, and its prompt encoded again", path, error)
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            os.utime(path)
        return tensors

    def put(self, prompt: Prompt, tensors: Tensors) -> None:
        """Begin to store a prompt's tensors; waits for neither the device nor the disk."""
        key = self.key(prompt)
        size = _bytes_of(tensors)
        waiting = sum(_bytes_of(other) for other, _ in tuple(self._pending.values()))
        if key in self._pending or size > self._max_bytes * _KEPT or waiting + size > _MAX_PENDING:
            return
        self._pending[key] = self._to_host(tensors)
        self._writer.submit(self._guarded, self._write_pending, key)

    def flush(self) -> None:
        """Wait until everything is written."""
        self._writer.submit(lambda: None).result()

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}{_SUFFIX}"

    def _to_host(self, tensors: Tensors) -> tuple[Tensors, torch.cuda.Event | None]:
        """Return copies in host memory, and the event after which they are complete."""
        device = next(iter(tensors.values())).device
        if device.type != "cuda":
            # never a view: it would keep the tensors of the other prompts of its call
            return {name: tensor.cpu().clone() for name, tensor in tensors.items()}, None
        self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        host = {name: receive(tensor, self._stream) for name, tensor in tensors.items()}
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record(self._stream)
        return host, copied

    # -- on the writer's thread ------------------------------------------------------------------------------

    def _guarded(self, work: Any, *arguments: Any) -> None:
        """Do some work. If it fails, images are rendered nevertheless, only not as fast after the next start."""
        try:
            work(*arguments)
        except OSError as error:
            log.warning("an embedding is not stored: %s; set LATENTFARM_CACHE_DIR to a writable folder", error)
        except Exception:
            log.exception("an embedding is not stored")

    def _write_pending(self, key: str) -> None:
        tensors, copied = self._pending[key]
        try:
            if copied is not None:
                copied.synchronize()
            self._write(key, tensors)
        finally:
            del self._pending[key]

    def _write(self, key: str, tensors: Tensors) -> None:
        path = self._path(key)
        if path.exists():
            return
        body = _encode(key, tensors)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        self._drafts += 1
        draft = path.with_name(f"{key}.{os.getpid()}-{self._drafts}{_DRAFT}")
        try:
            draft.write_bytes(body)
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        self._written += len(body)
        if self._written > self._max_bytes * _LOOK_AFTER:
            self._trim()

    def _trim(self) -> None:
        """Drop the files used longest ago until the folder is within its bound, and the drafts of dead processes.

        If two processes do it at once, they drop the same files.
        """
        files = sorted(self._files())
        newest_ns = files[-1].used_ns if files else 0
        known = sum(file.size for file in files)
        for file in files:
            abandoned = file.path.suffix == _DRAFT and newest_ns - file.used_ns > _DRAFT_AGE_S * 1e9
            if abandoned or known > self._max_bytes * _KEPT:
                file.path.unlink(missing_ok=True)
                known -= file.size
        self._written = 0

    def _files(self) -> Iterator[_File]:
        for path in self._folder.glob("??/*"):
            with suppress(FileNotFoundError):
                # another process may have dropped it
                found = path.stat()
                yield _File(found.st_mtime_ns, found.st_size, path)


def _canonical(value: Any, *, default: Callable[[Any], str] | None = None) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=default).encode()


def _bytes_of(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _digest(key: str, tensors: Tensors) -> str:
    """Return a sha256 over a key and over the names, dtypes, shapes and bytes of tensors."""
    digest = hashlib.sha256(key.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(_canonical([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _encode(key: str, tensors: Tensors) -> bytes:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save(contiguous, metadata={"sha256": _digest(key, contiguous)})


def _decode(key: str, body: bytes) -> Tensors:
    """Return the tensors of a file.

    Raises:
        SafetensorError, ValueError, KeyError, TypeError, RuntimeError: it is damaged.
    """
    length = int.from_bytes(body[:8], "little")
    expected = json.loads(body[8 : 8 + length])["__metadata__"]["sha256"]
    tensors: Tensors = load(body)
    if _digest(key, tensors) != expected:
        raise ValueError("its sha256 is not that of its content")
    return tensors

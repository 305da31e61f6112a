"""A real worker whose model breaks on a prompt that is a fault's name: ``python -m tests.support.faulty_worker``.

``FAULTS_SEEN`` names a folder. Each fault that occurs leaves a file there, named by the fault and the process. With
``BROKEN_CONSUMER`` set, Celery's consumer ends of an error that it does not expect.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from threading import Event
from typing import Any

import torch
from celery import bootsteps

from latentfarm.settings import Settings
from latentfarm_worker.build import load_model
from latentfarm_worker.service import worker
from latentfarm_worker.service.tasks import app, serve
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors

_real_load = load_model


def block() -> None:
    """Wait for ever, as for a driver call."""
    Event().wait()


def hold_the_lock() -> None:
    """Wait for ever within a C function, as a driver's call that does not release the interpreter's lock."""
    ctypes.PyDLL(None).sleep(3600)


def stick() -> None:
    """Lose the device."""
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def die() -> None:
    """Die as if killed for memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def exhaust() -> None:
    """Take memory until the process is killed for it, at most 4 GB."""
    taken = [bytearray(os.urandom(1 << 20)) * 64 for _ in range(64)]
    raise MemoryError(f"{len(taken)} times 64 MB did not kill this process")


def err() -> None:
    """Raise an error that only this prompt causes."""
    raise IndexError("the prompt 'err' breaks the model")


def crawl() -> None:
    """Take a second for a step."""
    time.sleep(1)


FAULTS = {fault.__name__: fault for fault in (block, hold_the_lock, stick, die, exhaust, err, crawl)}


class Faulty:
    """A family that breaks in ``predict`` as soon as a prompt that names a fault is in the batch."""

    def __init__(self, family: Any) -> None:
        self._family = family
        self._marks = {
            fault: family.encode([Prompt(family.tokenize(fault))])[0]["encoder_hidden_states"] for fault in FAULTS
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        for prompt, mark in self._marks.items():
            if (conditioning["encoder_hidden_states"] == mark).all(dim=2).all(dim=1).any():
                (Path(os.environ["FAULTS_SEEN"]) / f"{prompt}-{os.getpid()}").touch()
                FAULTS[prompt]()
        return self._family.predict(latents, timesteps, conditioning)  # type: ignore[no-any-return]


def load_faulty(settings: Settings) -> Any:
    """Load the worker's model, and break it."""
    return Faulty(_real_load(settings))


class BrokenStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """A part of Celery's consumer that cannot start."""

    def start(self, _consumer: Any) -> None:
        raise RuntimeError("a broken part of the consumer")


if __name__ == "__main__":
    if "BROKEN_CONSUMER" in os.environ:
        app.steps["consumer"].add(BrokenStep)
    worker.load_model = load_faulty  # type: ignore[assignment, attr-defined]
    sys.exit(serve())

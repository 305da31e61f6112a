"""The loop of every training stage: budget, learning rate, averaging, log, checkpoints.

A stage is resumable because nothing in it depends on hidden state: the batch of step k is drawn
from a generator seeded with (seed, stage, k), and everything else is in the checkpoint.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

log = logging.getLogger("latentfarm.mini")

Batch = Callable[[np.random.Generator, torch.Generator, float], torch.Tensor]


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The limits and rates of a stage. The first limit reached ends it. Times are in seconds."""

    name: str
    seconds: float
    steps: int
    rate: float
    seed: int = 0
    warm_up: int = 100
    average: float = 0.999
    clip: float = 1.0
    weight_decay: float = 0.01
    save_every: float = 120.0
    log_every: int = 50


@dataclass(slots=True)
class Progress:
    """The progress of a stage, over all its runs."""

    step: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)

    def share(self, plan: TrainingPlan) -> float:
        """Return the finished share of the plan, from 0 to 1."""
        return min(1.0, max(self.step / plan.steps, self.wall / plan.seconds))


def learning_rate(plan: TrainingPlan, progress: Progress) -> float:
    """Return a linear warm-up, then a cosine from the plan's rate down to a fiftieth of it."""
    warm = min(1.0, (progress.step + 1) / plan.warm_up)
    cosine = 0.5 * (1 + math.cos(math.pi * progress.share(plan)))
    return plan.rate * warm * (0.02 + 0.98 * cosine)


def generators(plan: TrainingPlan, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """Return the random generators of one step, the same on every run."""
    stage = int.from_bytes(plan.name.encode()[:4], "big")
    numbers = np.random.default_rng([plan.seed, stage, step])
    return numbers, torch.Generator().manual_seed(int(numbers.integers(2**62)))


class Optimizer(Protocol):
    """What a stage needs of an optimizer: torch's own have it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    def zero_grad(self, *, set_to_none: bool = True) -> None: ...
    def step(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


MakeOptimizer = Callable[[torch.nn.ModuleDict, TrainingPlan], Optimizer]


def adam(models: torch.nn.ModuleDict, plan: TrainingPlan) -> Optimizer:
    """Return AdamW over all parameters."""
    return torch.optim.AdamW(models.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay)


class Stage:
    """Trains ``models`` on the losses that ``batch`` returns, and keeps their running average."""

    def __init__(
        self,
        plan: TrainingPlan,
        models: dict[str, torch.nn.Module],
        batch: Batch,
        folder: Path,
        *,
        optimizer: MakeOptimizer = adam,
    ) -> None:
        self.plan = plan
        self.models = torch.nn.ModuleDict(models)
        self.averages = copy.deepcopy(self.models).requires_grad_(requires_grad=False)
        self.batch = batch
        self.path = folder / f"{plan.name}.pt"
        self.progress = Progress()
        self.optimizer = optimizer(self.models, plan)

    def resume(self) -> bool:
        """Load the stage's checkpoint; return whether it exists."""
        if not self.path.exists():
            return False
        state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        self.models.load_state_dict(state["models"])
        self.averages.load_state_dict(state["averages"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        return True

    def save(self) -> None:
        """Write the checkpoint in one rename, so that an interruption never leaves half a file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        done = self.progress
        state = {
            "models": self.models.state_dict(),
            "averages": self.averages.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": {"step": done.step, "wall": done.wall, "cpu": done.cpu, "losses": done.losses},
        }
        fresh = self.path.with_suffix(".tmp")
        torch.save(state, fresh)
        fresh.replace(self.path)

    def step(self) -> float:
        """Make one step of the optimizer; return its loss."""
        plan, done = self.plan, self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(plan, done)
        numbers, noise = generators(plan, done.step)
        loss = self.batch(numbers, noise, done.share(plan))
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.models.parameters(), plan.clip)
        self.optimizer.step()
        self._average()
        return float(loss.detach())

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.plan.average, (1 + self.progress.step) / (10 + self.progress.step))
        for mean, now in zip(self.averages.parameters(), self.models.parameters(), strict=True):
            mean.lerp_(now, 1 - keep)

    def run(self) -> Progress:
        """Train to the end of the plan, from the checkpoint on."""
        plan = self.plan
        if self.resume():
            log.info("%s: resumed at step %d", plan.name, self.progress.step)
        saved = time.monotonic()
        recent: list[float] = []
        while self.progress.share(plan) < 1.0:
            wall, cpu = time.monotonic(), time.process_time()
            recent.append(self.step())
            self.progress.step += 1
            self.progress.wall += time.monotonic() - wall
            self.progress.cpu += time.process_time() - cpu
            if self.progress.step % plan.log_every == 0:
                self._report(recent)
                recent.clear()
            if time.monotonic() - saved > plan.save_every:
                self.save()
                saved = time.monotonic()
        self.save()
        return self.progress

    def _report(self, recent: list[float]) -> None:
        done = self.progress
        mean = sum(recent) / len(recent)
        done.losses.append((done.step, mean))
        line = {
            "stage": self.plan.name,
            "step": done.step,
            "loss": round(mean, 6),
            "rate": round(learning_rate(self.plan, done), 7),
            "wall_s": round(done.wall, 1),
            "cpu_s": round(done.cpu, 1),
        }
        log.info("%s", json.dumps(line))


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed(place: torch.device) -> torch.autocast:
    """Return autocast to bfloat16 with float32 weights: on a recent CPU twice as fast as float32."""
    return torch.autocast(place.type, torch.bfloat16)

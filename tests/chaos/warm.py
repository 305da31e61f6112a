"""Imported by a fork_server: the plans that all jobs of a run need are worked out once, before any worker is forked."""

import torch
from tests.chaos.fake_worker import FakeFamily
from tests.chaos.producer import RUNS

from latentfarm_worker.engine.sampling_plan import plan_for

for _steps, _scheduler in RUNS:
    plan_for(FakeFamily("warm", torch.device("cpu"), torch.float32).scheduler_config, _scheduler, {}, _steps)

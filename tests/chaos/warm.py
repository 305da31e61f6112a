"""Imported by a fork_server: the plans that all jobs of a run need are worked out once, before any worker is forked."""

import torch
from tests.chaos.fake_worker import FakeFamily
from tests.chaos.producer import STEPS

from latentfarm_worker.engine.sampling_plan import plan_for

for _steps in STEPS:
    plan_for(FakeFamily("warm", torch.device("cpu"), torch.float32).scheduler_config, None, {}, _steps)

"""The models of one worker: which weights are on the device, and which are the same for several models."""

from latentfarm_worker.model_pool.memory import weights_budget
from latentfarm_worker.model_pool.pool import ModelPool

__all__ = ["ModelPool", "weights_budget"]

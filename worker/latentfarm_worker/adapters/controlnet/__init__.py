"""ControlNets: nets by alias, and the residuals that they add to the model of a row."""

from latentfarm_worker.adapters.controlnet.none import NoControlNets
from latentfarm_worker.adapters.controlnet.part import ControlNets

__all__ = ["ControlNets", "NoControlNets"]

"""The ControlNets of a model that takes none: a job that names one is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm_worker.adapters.controlnet.part import ControlHold, ControlNets

if TYPE_CHECKING:
    from latentfarm_worker.engine.job_inputs import JobInputs
    from latentfarm_worker.engine.sampling_plan import SamplingPlan


class NoControlNets(ControlNets):
    """Refuses jobs with a net."""

    net_class = ""
    compared = ()

    def prepare(self, job: Job, inputs: JobInputs, plan: SamplingPlan) -> ControlHold | None:
        """Return None for a job without nets.

        Raises:
            JobError: code ``adapter_mismatch``: it has one.
        """
        if not job.controls:
            return super().prepare(job, inputs, plan)
        raise JobError(
            "adapter_mismatch",
            f"controlnet {job.controls[0].name!r}: models of {self.pipeline} take no ControlNet; remove controlnet, or "
            "use Stable Diffusion 1.x, 2.x, XL or 3, or FLUX.1",
        )

    def condition(self, net: Any, image: torch.Tensor, generator: torch.Generator) -> NoReturn:
        """Raise TypeError: there is no net."""
        del image, generator
        raise TypeError(f"{self.pipeline} takes no {type(net).__name__}")

    def residuals(self, *inputs: object) -> dict[str, Any]:
        """Return no arguments."""
        del inputs
        return {}

"""A diffusers scheduler as a pipeline uses it: made from the model's config, set to its steps, and stepped."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import diffusers
import torch

from latentfarm.errors import JobError
from latentfarm_worker.noise_schedule import OWN_SCHEDULE, NoiseSchedule

#: config entries that make a scheduler non-linear, for the message
_NON_LINEAR = ("thresholding", "clip_sample")


class Span(NamedTuple):
    """The part of a run that one model makes, in shares of the training's timesteps.

    ``start``: as ``denoising_start`` of the pipelines. ``end``: as ``denoising_end``.
    """

    start: float = 0.0
    end: float = 1.0


#: a run with one model
WHOLE = Span()


def make_scheduler(class_name: str, config: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Return a diffusers scheduler of ``class_name`` from the model's ``config``, overridden by ``options``.

    Raises:
        JobError: code ``scheduler``: the class does not have such an option.

    """
    cls = getattr(diffusers, class_name)
    known = [key for key in inspect.signature(cls.__init__).parameters if key not in ("self", "kwargs")]
    for key in options:
        if key not in known:
            raise JobError(
                "scheduler",
                f"scheduler_options: {class_name} has no {key!r}; write one of {', '.join(known)}",
            )
    # the other entries belong to other classes, and diffusers would warn about them
    own = {key: value for key, value in config.items() if key in known or key == "_use_default_values"}
    return cls.from_config(own, **options)


def set_steps(
    scheduler: Any,
    num_inference_steps: int,
    schedule: NoiseSchedule = OWN_SCHEDULE,
    steps_made: int | None = None,
    span: Span = WHOLE,
) -> torch.Tensor:
    """Set the steps, with the noise levels of a model's pipeline as far as the scheduler takes them.

    Where two steps round to one timestep, as at the start of beta schedules, a scheduler that searches for its first
    step begins with the second.

    Args:
        scheduler: a diffusers scheduler.
        num_inference_steps: the steps of a whole run.
        schedule: the noise levels of the model's pipeline.
        steps_made: begin so many steps before the end, as ``get_timesteps`` of the pipelines [default: all].
        span: the part of the run that is made, without ``steps_made``.

    Returns:
        The timesteps of the evaluations that are made.

    """
    scheduler.set_timesteps(num_inference_steps, device="cpu", **_noise_levels(scheduler, schedule))
    begin, end = _cut(scheduler, span)
    if steps_made is not None:
        begin = (num_inference_steps - steps_made) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    timesteps: torch.Tensor = scheduler.timesteps[begin:end]
    return timesteps


def _cut(scheduler: Any, span: Span) -> tuple[int, int]:
    """Return the first evaluation of a part of a run, and the one behind its last.

    Source: ``StableDiffusionXLPipeline.__call__``, and ``get_timesteps`` of ``StableDiffusionXLImg2ImgPipeline``, which
    repeats an evaluation if the cut is within a step of two evaluations.
    """
    timesteps, trained = scheduler.timesteps, scheduler.config.get("num_train_timesteps", 0)
    begin, end = 0, len(timesteps)
    if span.start > 0:
        left = int((timesteps < round(trained - span.start * trained)).sum())
        begin = end - left - int(scheduler.order == 2 and left % 2 == 0)
    if span.end < 1:
        end = int((timesteps >= round(trained - span.end * trained)).sum())
    return begin, end


def noise_factors(scheduler: Any, timestep: torch.Tensor) -> tuple[float, float]:
    """Return the factors of an image's latents and of noise with which a pipeline noises the image at this point.

    Raises:
        JobError: code ``scheduler``: the scheduler cannot.
    """
    one, zero, timesteps = torch.ones(1, 1, 1, 1).double(), torch.zeros(1, 1, 1, 1).double(), timestep.reshape(1)
    # those of flow matching
    if hasattr(scheduler, "scale_noise"):
        return float(scheduler.scale_noise(one, timesteps, zero)), float(scheduler.scale_noise(zero, timesteps, one))
    if not hasattr(scheduler, "add_noise"):
        raise JobError(
            "scheduler", f"{type(scheduler).__name__} cannot begin with an image; name another in the field scheduler"
        )
    return float(scheduler.add_noise(one, zero, timesteps)), float(scheduler.add_noise(zero, one, timesteps))


def _noise_levels(scheduler: Any, schedule: NoiseSchedule) -> dict[str, Any]:
    """Return the arguments of ``set_timesteps``, as FluxPipeline passes them."""
    accepted, config = inspect.signature(scheduler.set_timesteps).parameters, scheduler.config
    arguments: dict[str, Any] = {}
    if schedule.sigmas is not None and "sigmas" in accepted and not config.get("use_flow_sigmas"):
        arguments["sigmas"] = list(schedule.sigmas)
    if schedule.mu is not None and "mu" in accepted and config.get("use_dynamic_shifting"):
        arguments["mu"] = schedule.mu
    return arguments


def step_arguments(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """Return the keyword arguments that StableDiffusionPipeline passes to ``step``: eta 0 and the generator."""
    accepted = inspect.signature(scheduler.step).parameters
    offered = {"eta": 0.0, "generator": generator}
    return {key: value for key, value in offered.items() if key in accepted}


def scale_input(scheduler: Any, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Return the model's input. Flow-matching schedulers have no ``scale_model_input``."""
    if hasattr(scheduler, "scale_model_input"):
        scaled: torch.Tensor = scheduler.scale_model_input(sample, timestep)
        return scaled
    return sample


def refusal(scheduler: Any, why: str) -> JobError:
    """Return the error for a scheduler without a plan, with the setting that causes it."""
    config = scheduler.config
    causes = [key for key in _NON_LINEAR if config.get(key)]
    if causes:
        cure = f"set {causes[0]} to false in scheduler_options"
    elif config.get("skip_prk_steps") is False:  # PNDM's Runge-Kutta start needs a history of 13
        cure = "set skip_prk_steps to true in scheduler_options"
    else:
        cure = "choose another scheduler"
    return JobError("scheduler", f"{type(scheduler).__name__} cannot be run as a linear plan: {why}; {cure}")

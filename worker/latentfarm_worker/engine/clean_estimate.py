"""The estimate of the finished latents (x0) that each evaluation of the model implies, as numbers of the plan.

The model's input is ``s[i] * x[i] = sqrt(a) * x0 + sqrt(1 - a) * noise``, where ``a`` is the scheduler's cumulative
alpha at the timestep, and the output is the noise, the velocity or x0 itself. So the estimate is linear in both:

    x0 = p[i] * x[i] + q[i] * m[i]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, exp, hypot, pi, sin, sqrt
from typing import Any

import torch

#: the smallest cumulative alpha: with zero terminal SNR it is 0, and the noise does not determine x0
_MIN_ALPHA = 2.0**-24

Factors = tuple[float, float]


def estimate_factors(scheduler: Any, timesteps: Sequence[float], input_scales: Sequence[float]) -> tuple[Factors, ...]:
    """Return the factors ``(p, q)`` of each evaluation of a diffusers scheduler whose steps are set.

    Timesteps and input scales are those of the plan.
    """
    factors = _factors_by_timestep(scheduler)
    return tuple(
        (scale * p, q)
        for scale, (p, q) in zip(input_scales, (factors(timestep) for timestep in timesteps), strict=True)
    )


def _factors_by_timestep(scheduler: Any) -> Callable[[float], Factors]:
    """Return the function from a timestep to the factors of the model's input and output."""
    config, name = scheduler.config, type(scheduler).__name__
    prediction = config.get("prediction_type", "epsilon")
    if name.startswith("FlowMatch") or prediction == "flow_prediction":
        return lambda timestep: (1.0, -timestep / config.num_train_timesteps)
    if name == "IPNDMScheduler":
        # its timesteps are angles of the velocity, in right angles
        return lambda timestep: (cos(timestep * pi / 2), -sin(timestep * pi / 2))
    if name == "EDMEulerScheduler":
        return lambda timestep: _edm(exp(4 * timestep), config.sigma_data, prediction)
    alphas = scheduler.alphas_cumprod.double().clamp(min=_MIN_ALPHA)
    log_sigmas = ((1 - alphas) / alphas).log() / 2
    return lambda timestep: _variance_preserving(_interpolated(log_sigmas, timestep), prediction)


def _variance_preserving(log_sigma: float, prediction: str) -> Factors:
    sigma = exp(log_sigma)
    alpha = 1 / sqrt(1 + sigma**2)
    match prediction:
        case "sample":
            return 0.0, 1.0
        case "v_prediction":
            return alpha, -sigma * alpha
        case _:
            return 1 / alpha, -sigma


def _edm(sigma: float, sigma_data: float, prediction: str) -> Factors:
    """Return the factors of EDM's preconditioning (arXiv 2206.00364); the input is divided by ``norm``."""
    norm = hypot(sigma, sigma_data)
    sign = -1 if prediction == "v_prediction" else 1
    return sigma_data**2 / norm, sign * sigma * sigma_data / norm


def _interpolated(log_sigmas: torch.Tensor, timestep: float) -> float:
    """Return the noise level between two timesteps as diffusers' schedulers do, which invert this."""
    last = len(log_sigmas) - 1
    below = int(min(max(timestep, 0.0), last))
    share = min(max(timestep - below, 0.0), 1.0)
    return float(log_sigmas[below] * (1 - share) + log_sigmas[min(below + 1, last)] * share)

"""The noise levels that a model's pipeline passes to its scheduler, besides the number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class NoiseSchedule(NamedTuple):
    """Arguments of ``set_timesteps`` of a diffusers scheduler.

    ``sigmas``: the noise levels before any shift, one for each step; None: the scheduler's own. ``mu``: the shift of
    the noise levels, for a scheduler with ``use_dynamic_shifting``.
    """

    sigmas: tuple[float, ...] | None = None
    mu: float | None = None


#: the scheduler's own noise levels
OWN_SCHEDULE = NoiseSchedule()


def even_sigmas(num_inference_steps: int) -> tuple[float, ...]:
    """Return noise levels from 1 to 1 / steps at equal distances, as FluxPipeline does."""
    return tuple(np.linspace(1.0, 1 / num_inference_steps, num_inference_steps).tolist())


def shift_by_tokens(scheduler_config: Mapping[str, Any], tokens: int) -> float:
    """Return ``mu`` for an image of so many tokens, as ``calculate_shift`` of FluxPipeline (arXiv 2403.03206).

    It rises linearly from ``base_shift`` at ``base_image_seq_len`` to ``max_shift`` at ``max_image_seq_len``.
    """
    fewest, most = scheduler_config.get("base_image_seq_len", 256), scheduler_config.get("max_image_seq_len", 4096)
    low, high = scheduler_config.get("base_shift", 0.5), scheduler_config.get("max_shift", 1.15)
    slope = (high - low) / (most - fewest)
    return float(tokens * slope + (low - slope * fewest))

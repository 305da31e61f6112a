"""One evaluation of the model for a micro-batch, as functions over the state of all images on the device.

The state is in float32. An image has a place in it, with the last HISTORY samples x and model outputs m as rings (x[i]
at column i mod HISTORY), the step's noise, its whole plan, and a counter of its steps. So an evaluation moves no
history, copies nothing from the host, and needs no number of the device on the host. The functions have no branch that
depends on data: they can be compiled, and captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from latentfarm_worker.engine.sampling_plan import COLUMNS, HISTORY

#: the column of ``LatentState.history`` with the step's noise
NOISE = COLUMNS - 1
#: columns of ``LatentState.table``: timestep, input scale, guidance scale, coefficients
_WIDTHS = [1, 1, 1, COLUMNS]
TABLE_COLUMNS = sum(_WIDTHS)


#: ``Family.combine``: output, negative output and guidance scales to the guided output
Combine = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class LatentState(NamedTuple):
    """The state of all images by place.

    Attributes:
        history: float32 (places, COLUMNS, C, h, w).
        table: float32 (places, evaluations, TABLE_COLUMNS), the numbers of each evaluation.
        step_index: int64 (places,), the evaluations that are done.
    """

    history: torch.Tensor
    table: torch.Tensor
    step_index: torch.Tensor


class Evaluation(NamedTuple):
    """What one evaluation of the model needs for rows.

    Attributes:
        latents: the model's input, scaled, float32 (R, C, h, w).
        timesteps: float32 (R,).
        guidance: guidance scales, float32 (R, 1, 1, 1).
        coefficients: of the columns of the history, float32 (R, COLUMNS).
        step_index: int64 (R,).
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    guidance: torch.Tensor
    coefficients: torch.Tensor
    step_index: torch.Tensor


def begin(state: LatentState, indices: torch.Tensor) -> Evaluation:
    """Return the next evaluation of rows. ``indices`` are those of a micro-batch, int64 (3, R)."""
    places = indices[0]
    step_index = state.step_index[places]
    timesteps, scales, guidance, coefficients = torch.split(state.table[places, step_index], _WIDTHS, dim=1)
    latents = state.history[places, step_index % HISTORY]
    return Evaluation(
        latents=_wide(scales) * latents,
        timesteps=timesteps.reshape(-1),
        guidance=_wide(guidance),
        coefficients=coefficients,
        step_index=step_index,
    )


def update(
    state: LatentState, indices: torch.Tensor, evaluation: Evaluation, output: torch.Tensor, combine: Combine
) -> None:
    """Apply guidance to the model's output, float32 (R, C, h, w), and store the next latents of each image."""
    _, targets, negatives = indices.unbind()
    step_index = evaluation.step_index
    following = step_index + 1
    guided = combine(output, output[negatives], evaluation.guidance)
    state.history[targets, HISTORY + step_index % HISTORY] = guided
    latents = torch.zeros_like(output)
    # column by column, in a fixed order: no temporary of all columns, and the same bytes for any number of rows
    for number, column in zip(torch.split(evaluation.coefficients, 1, dim=1), state.history.unbind(dim=1), strict=True):
        latents = torch.addcmul(latents, _wide(number), column[targets])
    state.history[targets, following % HISTORY] = latents
    state.step_index[targets] = following


def _wide(numbers: torch.Tensor) -> torch.Tensor:
    """Return (R, 1) as (R, 1, 1, 1)."""
    return numbers[..., None, None]

"""How many steps are made on an image, as the pipelines of diffusers round them, and for a draft."""

from __future__ import annotations


def steps_made(steps: int, strength: float, *, flow: bool = False) -> int:
    """Return the steps that are made of ``steps`` at a strength from 0 to 1.

    Source: ``get_timesteps`` of diffusers' ``StableDiffusionImg2ImgPipeline``, and of ``FluxImg2ImgPipeline`` and
    ``StableDiffusion3Img2ImgPipeline`` for ``flow``, which round up.
    """
    if flow:
        return steps - int(max(steps - min(steps * strength, steps), 0))
    return min(int(steps * strength), steps)


def first_evaluation(start: float, evaluations: int) -> int:
    """Return the first evaluation of the model at which something is on that begins at a share of the evaluations.

    The division is that of ``controlnet_keep`` in diffusers' pipelines, since others round elsewhere.
    """
    return next((i for i in range(evaluations) if i / evaluations >= start), evaluations)


def evaluations_between(start: float, end: float, evaluations: int) -> tuple[int, int]:
    """Return the evaluations at which a ControlNet begins and ends, as ``controlnet_keep`` in diffusers' pipelines.

    Args:
        start: the share of the evaluations before which it is off.
        end: that after which it is off.
        evaluations: the evaluations of the image.
    """
    # the divisions of diffusers, since others round elsewhere
    kept = [i for i in range(evaluations) if not (i / evaluations < start or (i + 1) / evaluations > end)]
    return (kept[0], kept[-1] + 1) if kept else (0, 0)


def draft_evaluations(draft: float, steps: int, evaluations: int) -> int | None:
    """Return the evaluations of the model after which a job stops as a draft, None if it is rendered to its end.

    Args:
        draft: below 1 a share of the steps, else a number of steps; 0: no draft.
        steps: the job's steps.
        evaluations: of the whole job: its steps that are made, or twice as many with a scheduler of second order.
    """
    if not draft or evaluations < 2:
        return None
    share = draft if draft < 1 else min(1.0, draft / steps)
    return min(max(1, round(share * evaluations)), evaluations - 1)

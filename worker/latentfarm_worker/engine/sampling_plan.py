"""Sampling plans: a diffusers scheduler for one number of steps, as a table of coefficients.

Every scheduler that Stable Diffusion uses is *linear* in the sample, the model's outputs and the noise. So for model
evaluation i

    x[i+1] = sum_k a[i,k] x[i-k]  +  sum_k b[i,k] m[i-k]  +  c[i] noise[i]        k < HISTORY

and the model's input is ``s[i] * x[i]`` at timestep ``t[i]``. The coefficients are not derived from papers: the
scheduler is *probed*, in float64. Its sample is the first unit vector of a long space, and the model's output of
evaluation i is the (1+i)-th one. So ``step`` returns the coefficients over the whole history. Least squares then finds
the shortest recurrence with the same samples. A last run over dense random numbers verifies the plan, and so refuses
clipping and thresholding, which are not linear.

A job on an image makes the last steps only. So its plan is that of a scheduler that begins there, without a history;
and so is that of a refiner, which ends what another model began.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import torch

from latentfarm import schedulers
from latentfarm.errors import InputError, JobError
from latentfarm_worker.engine.clean_estimate import Factors, estimate_factors
from latentfarm_worker.engine.diffusers_scheduler import (
    WHOLE,
    Span,
    make_scheduler,
    noise_factors,
    refusal,
    scale_input,
    set_steps,
    step_arguments,
)
from latentfarm_worker.noise_schedule import OWN_SCHEDULE, NoiseSchedule

#: samples and outputs in a recurrence: x[i] .. x[i-3] and m[i] .. m[i-3]
HISTORY = 4
#: columns of ``SamplingPlan.coefficients``: a[0..3], b[0..3], c
COLUMNS = 2 * HISTORY + 1
#: largest error of a fitted recurrence, relative to the largest coefficient (or 1): a few float32 roundings
MAX_RESIDUAL = 2e-6
#: if the error is below this, no more terms are tried
EXACT = 1e-9
#: largest relative error over a whole run of dense numbers; clipping and thresholding cause 1e-2 and more
MAX_REPLAY_ERROR = 1e-4

#: what diffusers raises for invalid options or step counts
_REFUSALS = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    RuntimeError,
)


@dataclass(frozen=True)
class SamplingPlan:
    """A scheduler as numbers, one row for each model evaluation. Some schedulers evaluate more than once a step.

    Attributes:
        scheduler: diffusers' class name.
        timesteps, input_scales: one number for each evaluation.
        coefficients: float64 (evaluations, COLUMNS), the columns a[0..3], b[0..3], c.
        uses_noise: whether an evaluation draws noise from the job's generator, even with the coefficient 0.
        init_noise_sigma: the factor of the initial latents.
        digest: sha256 of all of it in float32.
        estimates: of each evaluation, the factors of x[i] and m[i] in the estimate of the finished latents.
        noised: for a job on an image, the factors of the image's latents and of the noise in its noised latents: before
            each evaluation, and after the last, where there is no noise.
    """

    scheduler: str
    timesteps: tuple[float, ...]
    input_scales: tuple[float, ...]
    coefficients: torch.Tensor
    uses_noise: tuple[bool, ...]
    init_noise_sigma: float
    digest: str
    estimates: tuple[Factors, ...] = ()
    noised: tuple[Factors, ...] = ()

    @property
    def num_evaluations(self) -> int:
        """Return how often the model is evaluated."""
        return len(self.timesteps)

    @cached_property
    def draws_before(self) -> tuple[int, ...]:
        """Return how many evaluations draw noise before each."""
        return (0, *accumulate(map(int, self.uses_noise[:-1])))

    @cached_property
    def ring_coefficients(self) -> list[list[float]]:
        """Return the coefficients for rings: x[i] at place i mod HISTORY, m[i] at HISTORY + i mod HISTORY."""
        rotated = []
        for index, row in enumerate(self.coefficients.tolist()):
            line = [0.0] * COLUMNS
            line[-1] = row[-1]
            for k in range(HISTORY):
                line[(index - k) % HISTORY] = row[k]
                line[HISTORY + (index - k) % HISTORY] = row[HISTORY + k]
            rotated.append(line)
        return rotated


def plan_for(
    model_config: Mapping[str, Any],
    name: str | None,
    options: Mapping[str, Any],
    num_inference_steps: int,
    schedule: NoiseSchedule = OWN_SCHEDULE,
    *,
    steps_made: int | None = None,
    span: Span = WHOLE,
) -> SamplingPlan:
    """Return the plan of a job, cached.

    Args:
        model_config: the model's own scheduler config with its ``_class_name``.
        name: as in ``latentfarm.schedulers.resolve``; None for the model's own scheduler.
        options: entries that override the config.
        num_inference_steps: the job's steps.
        schedule: the noise levels of the model's pipeline, which may depend on steps and size.
        steps_made: for a job on an image, how many of the last steps are made, 1 or more [default: no image].
        span: the part of the run that is made, for a job with a refiner.

    Raises:
        JobError: code ``scheduler``: an unknown name or option, a value that the scheduler refuses, or a scheduler that
            is not linear.

    """
    class_name, own = str(model_config["_class_name"]), {}
    if name is not None:
        try:
            resolved = schedulers.fit(schedulers.resolve(name), model_config, options)
        except InputError as error:
            raise JobError("scheduler", str(error)) from None
        class_name, own = resolved.class_name, dict(resolved.options)
    elif class_name not in schedulers.CLASS_NAMES:
        raise JobError(
            "scheduler",
            f"the model's own scheduler {class_name} has no tested sampling plan; "
            f"name one in the field scheduler: {schedulers.list_names()}",
        )
    key = json.dumps([dict(model_config), {**own, **options}], sort_keys=True, default=str)
    return _cached_plan(class_name, key, num_inference_steps, schedule, steps_made, span)


@lru_cache(maxsize=512)
def _cached_plan(
    class_name: str, key: str, num_inference_steps: int, schedule: NoiseSchedule, steps_made: int | None, span: Span
) -> SamplingPlan:
    config, options = json.loads(key)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers deprecates its own internals; users cannot act on it
            return make_plan(
                lambda: make_scheduler(class_name, config, options),
                num_inference_steps,
                schedule,
                steps_made=steps_made,
                span=span,
            )
    except _REFUSALS as error:
        shown = f"with {options} " if options else ""
        raise JobError(
            "scheduler",
            f"{class_name} {shown}and num_inference_steps={num_inference_steps} is refused by diffusers: "
            f"{error}; change scheduler_options or num_inference_steps",
        ) from error


def make_plan(
    new_scheduler: Any,
    num_inference_steps: int,
    schedule: NoiseSchedule = OWN_SCHEDULE,
    *,
    steps_made: int | None = None,
    span: Span = WHOLE,
) -> SamplingPlan:
    """Probe a scheduler and verify the plan against it.

    ``new_scheduler`` returns a new diffusers scheduler each time. ``steps_made`` and ``span`` are as of ``plan_for``.

    Raises:
        JobError: code ``scheduler``: no linear recurrence over HISTORY evaluations gives the same samples.
            ``refiner_without_steps``: the span has no evaluation.

    """
    scheduler = new_scheduler()
    probe = _Probe(scheduler, set_steps(scheduler, num_inference_steps, schedule, steps_made, span))
    if not probe.num_evaluations:
        shorter, cure = ("refiner", "smaller") if span.start else ("model", "greater")
        raise JobError(
            "refiner_without_steps",
            f"refiner_start {span.start or span.end:g} of {num_inference_steps} steps leaves the {shorter} none; write "
            f"a {cure} one, or more steps",
        )
    rows, noised = [], []
    for index in range(probe.num_evaluations):
        # where a pipeline adds noise to the image: before the first evaluation, then between two
        noised += [probe.noised(index)] if steps_made is not None else []
        rows.append(probe.row(index))
    noised += [(1.0, 0.0)] if noised else []
    name = type(scheduler).__name__
    coefficients = torch.stack([row.coefficients for row in rows])
    numbers = (
        tuple(row.timestep for row in rows),
        tuple(row.input_scale for row in rows),
        coefficients,
        tuple(row.uses_noise for row in rows),
        probe.init_noise_sigma,
    )
    estimates = estimate_factors(scheduler, numbers[0], numbers[1])
    digest = _digest(name, *numbers, *([noised] if noised else []))
    plan = SamplingPlan(name, *numbers, digest=digest, estimates=estimates, noised=tuple(noised))
    other = new_scheduler()
    _verify(plan, other, set_steps(other, num_inference_steps, schedule, steps_made, span))
    return plan


@dataclass(frozen=True)
class _Row:
    timestep: float
    input_scale: float
    coefficients: torch.Tensor  # float64 (COLUMNS,)
    uses_noise: bool


class _Probe:
    """Runs one scheduler over unit vectors, at its timesteps; samples, outputs and noise are float64 (space,)."""

    def __init__(self, scheduler: Any, timesteps: torch.Tensor) -> None:
        self.timesteps = timesteps
        self.scheduler = scheduler
        self.num_evaluations = len(self.timesteps)
        self.init_noise_sigma = float(getattr(scheduler, "init_noise_sigma", 1.0))
        self.space = 1 + self.num_evaluations + 32  # the last 32 dimensions separate dense noise from the unit vectors
        self.generator = torch.Generator("cpu").manual_seed(0)
        self.arguments = step_arguments(scheduler, self.generator)
        self.samples = [self._unit(0)]
        self.outputs: list[torch.Tensor] = []

    def noised(self, index: int) -> Factors:
        """Return the factors of ``SamplingPlan.noised`` before evaluation ``index``."""
        return noise_factors(self.scheduler, self.timesteps[index])

    def row(self, index: int) -> _Row:
        """Make the scheduler's step ``index`` and return its recurrence."""
        timestep = self.timesteps[index]
        sample = self.samples[-1]
        scaled = scale_input(self.scheduler, self._image(sample), timestep).flatten().double()
        input_scale = float(scaled @ sample / (sample @ sample))
        self._check(scaled, input_scale * sample)
        self.outputs.append(self._unit(1 + index))
        before = self.generator.get_state()
        image = self.scheduler.step(
            self._image(self.outputs[-1]), timestep, self._image(sample), **self.arguments, return_dict=False
        )[0]
        self.samples.append(image.flatten().double())
        noise = self._redraw(before)
        coefficients = self._shortest(noise)
        return _Row(float(timestep), input_scale, coefficients, noise is not None)

    def _unit(self, index: int) -> torch.Tensor:
        vector = torch.zeros(self.space, dtype=torch.float64)
        vector[index] = 1.0
        return vector

    def _image(self, vector: torch.Tensor) -> torch.Tensor:
        return vector.reshape(1, 1, 1, self.space).clone()  # UniPC's einsum wants batch, channel and more

    def _redraw(self, before: torch.Tensor) -> torch.Tensor | None:
        """Return the noise that ``step`` drew since ``before``; None if it drew none."""
        after = self.generator.get_state()
        if torch.equal(before, after):
            return None
        again = torch.Generator("cpu")
        # some schedulers draw in float32 for a sample of any dtype
        for dtype in (torch.float64, torch.float32):
            again.set_state(before)
            noise = torch.randn((1, 1, 1, self.space), generator=again, dtype=dtype)
            if torch.equal(again.get_state(), after) and self._explains(noise):
                return noise.flatten().double()
        raise self._refusal("its noise is not one normal draw of the sample's shape")

    def _explains(self, noise: torch.Tensor) -> bool:
        # in the last 32 dimensions, without unit vectors, the new sample consists of old and new noise only
        columns = [*self.samples[-1 - HISTORY : -1], noise.flatten().double()]
        _, error = _fit(columns, self.samples[-1], rest=self.space - 32)
        return error < MAX_RESIDUAL

    def _shortest(self, noise: torch.Tensor | None) -> torch.Tensor:
        """Return the exact recurrence with the fewest terms, and of these the smallest: float64 (COLUMNS,)."""
        past = range(1, 1 + min(HISTORY, len(self.outputs)))
        fits = [(a + b, *self._fit_recurrence(a, b, noise)) for a in past for b in past]
        best = min(error for _, _, error in fits)
        if best > MAX_RESIDUAL:
            raise self._refusal(f"no linear recurrence over {HISTORY} evaluations gives the same samples")
        exact = [(terms, row) for terms, row, error in fits if error <= max(4 * best, EXACT)]
        return min(exact, key=lambda fit: (fit[0], float(fit[1].abs().max())))[1]

    def _fit_recurrence(self, a: int, b: int, noise: torch.Tensor | None) -> tuple[torch.Tensor, float]:
        """Fit ``a`` samples, ``b`` outputs and the noise; return float64 (COLUMNS,) and the largest error."""
        columns = [self.samples[-2 - k] for k in range(a)] + [self.outputs[-1 - k] for k in range(b)]
        columns += [] if noise is None else [noise]
        found, error = _fit(columns, self.samples[-1])
        row = torch.zeros(COLUMNS, dtype=torch.float64)
        row[:a], row[HISTORY : HISTORY + b] = found[:a], found[a : a + b]
        row[-1] = 0.0 if noise is None else found[-1]
        row[row.abs() < 1e-12] = 0.0  # float64 rounding, which differs between machines and would change the digest
        return row, error

    def _check(self, got: torch.Tensor, wanted: torch.Tensor) -> None:
        if float((got - wanted).abs().max()) > MAX_RESIDUAL * max(1.0, float(got.abs().max())):
            raise self._refusal("its model input is not a multiple of the sample")

    def _refusal(self, why: str) -> JobError:
        return refusal(self.scheduler, why)


def _fit(columns: list[torch.Tensor], wanted: torch.Tensor, rest: int = 0) -> tuple[torch.Tensor, float]:
    """Return the least-squares solution over the dimensions from ``rest`` on, and its largest relative error."""
    matrix = torch.stack(columns, dim=1)[rest:]
    wanted = wanted[rest:]
    norms = matrix.norm(dim=0).clamp(min=1e-12)
    found = torch.linalg.lstsq(matrix / norms, wanted[:, None], driver="gelsd").solution[:, 0] / norms
    error = float((matrix @ found - wanted).abs().max() / max(1.0, float(wanted.abs().max())))
    return found, error if math.isfinite(error) else math.inf


def replay(plan: SamplingPlan, start: torch.Tensor, model: Any, generator: torch.Generator) -> torch.Tensor:
    """Run a plan over one sample, one evaluation at a time, in the sample's dtype; the reference for the engine.

    ``model(index)`` returns the model's output of an evaluation. ``generator`` draws noise in the sample's dtype.
    """
    coefficients = plan.coefficients.to(start.dtype)
    samples, outputs = [start], []
    for index in range(plan.num_evaluations):
        outputs.append(model(index))
        row = coefficients[index]
        new = torch.zeros_like(start)
        if plan.uses_noise[index]:
            new = row[-1] * torch.randn(start.shape, generator=generator, dtype=start.dtype)
        for k in range(min(HISTORY, index + 1)):
            new = new + row[k] * samples[-1 - k] + row[HISTORY + k] * outputs[-1 - k]
        samples.append(new)
    return samples[-1]


def _verify(plan: SamplingPlan, scheduler: Any, timesteps: torch.Tensor) -> None:
    """Compare the plan with ``scheduler`` over dense numbers so large (100 sigma) that any clipping shows."""
    source = torch.Generator("cpu").manual_seed(1)
    start = 100 * plan.init_noise_sigma * torch.randn((1, 2, 4, 4), generator=source)
    outputs = 100 * torch.randn((plan.num_evaluations, *start.shape), generator=source)
    generator = torch.Generator("cpu").manual_seed(2)
    arguments = step_arguments(scheduler, generator)
    sample = start
    for index, timestep in enumerate(timesteps):
        scale_input(scheduler, sample, timestep)  # some schedulers require this call
        sample = scheduler.step(outputs[index], timestep, sample, **arguments, return_dict=False)[0]
    replayed = replay(plan, start, lambda index: outputs[index], torch.Generator("cpu").manual_seed(2))
    if not float((replayed - sample).abs().max()) <= MAX_REPLAY_ERROR * float(sample.abs().max()):
        raise refusal(scheduler, "its samples do not follow the recurrence of its unit responses")


def _digest(scheduler: str, *numbers: Any) -> str:
    digest = hashlib.sha256(scheduler.encode())
    for value in numbers:
        digest.update(torch.as_tensor(value, dtype=torch.float32).numpy().tobytes())
    return digest.hexdigest()

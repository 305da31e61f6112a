"""Sampling plans: everything a diffusers scheduler does for one (scheduler, steps), as a table of numbers.

Every scheduler that stable diffusion uses is *linear* in the sample, the model's outputs and the noise. So
for call i

    x[i+1] = sum_k a[i,k] x[i-k]  +  sum_k b[i,k] m[i-k]  +  c[i] noise[i]        k < HISTORY

and the model's input is ``s[i] * x[i]`` at timestep ``t[i]``. The numbers are not derived from papers again:
the scheduler is *probed*. It gets, in float64, the first unit vector of a long space as the sample and the
(1+i)-th one as the model's output of call i; what its ``step`` returns is then the vector of the coefficients
over the whole past, and least squares finds the shortest recurrence that gives the same. A last run over
dense random numbers proves the plan: clipping and thresholding, which are not linear, do not get past it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import diffusers
import torch

from latentfarm import schedulers
from latentfarm.errors import InputError, JobError

#: how far back a recurrence may look: x[i] .. x[i-3] and m[i] .. m[i-3]
HISTORY = 4
#: columns of ``Plan.coefficients``: a[0..3], b[0..3], c
COLUMNS = 2 * HISTORY + 1
#: the worst error of a fitted recurrence, relative to the largest coefficient (or 1): a few float32 roundings
MAX_RESIDUAL = 2e-6
#: an error that no more terms need to make smaller
EXACT = 1e-9
#: the same over a whole run of dense numbers; what clips or thresholds is wrong by 1e-2 and more
MAX_REPLAY_ERROR = 1e-4

#: config entries that make a scheduler non-linear, for the message
_NON_LINEAR = ("thresholding", "clip_sample")
#: what diffusers raises for options or step counts that a scheduler cannot take
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
    """A scheduler as numbers. A row is one call of the model; some schedulers make more calls than steps.

    ``coefficients``: float64 (calls, COLUMNS), the columns a[0..3], b[0..3], c. ``timesteps`` and
    ``input_scales``: one number a call. ``draws``: whether the call draws noise from the job's generator (it
    may draw and not use it). ``init_noise_sigma``: the factor of the initial latents. ``digest``: sha256 of
    all of it in float32.
    """

    scheduler: str
    timesteps: tuple[float, ...]
    input_scales: tuple[float, ...]
    coefficients: torch.Tensor
    draws: tuple[bool, ...]
    init_noise_sigma: float
    digest: str

    @property
    def calls(self) -> int:
        """How often the model is called."""
        return len(self.timesteps)

    @cached_property
    def ring_coefficients(self) -> list[list[float]]:
        """``coefficients`` for a past kept as rings: x[i] at place i mod HISTORY, m[i] that much further."""
        turned = []
        for call, row in enumerate(self.coefficients.tolist()):
            line = [0.0] * COLUMNS
            line[-1] = row[-1]
            for k in range(HISTORY):
                line[(call - k) % HISTORY] = row[k]
                line[HISTORY + (call - k) % HISTORY] = row[HISTORY + k]
            turned.append(line)
        return turned


def plan_for(
    model_config: Mapping[str, Any], name: str | None, options: Mapping[str, Any], num_inference_steps: int
) -> SamplingPlan:
    """Return the (cached) plan of a job.

    ``model_config`` is the model's own scheduler config with its ``_class_name``; ``name`` as in
    ``latentfarm.schedulers.resolve``, None for the model's own; ``options`` override the config.

    Raises:
        JobError: code ``scheduler``: unknown name or option, a value the scheduler refuses, or it is not
            linear.

    """
    class_name, own = str(model_config["_class_name"]), {}
    if name is not None:
        try:
            resolved = schedulers.resolve(name)
        except InputError as error:
            raise JobError("scheduler", str(error)) from None
        class_name, own = resolved.class_name, dict(resolved.options)
    elif class_name not in schedulers.CLASS_NAMES:
        raise JobError(
            "scheduler",
            f"the model's own scheduler {class_name} has no tested sampling plan; "
            f"name one in the field scheduler: {', '.join(schedulers.SHORT_NAMES)}",
        )
    key = json.dumps([dict(model_config), {**own, **options}], sort_keys=True, default=str)
    return _cached_plan(class_name, key, num_inference_steps)


@lru_cache(maxsize=512)
def _cached_plan(class_name: str, key: str, num_inference_steps: int) -> SamplingPlan:
    config, options = json.loads(key)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside diffusers; nothing a job's owner could act on
            return make_plan(lambda: make_scheduler(class_name, config, options), num_inference_steps)
    except _REFUSALS as error:
        said = f"with {options} " if options else ""
        raise JobError(
            "scheduler",
            f"{class_name} {said}and num_inference_steps={num_inference_steps} is refused by diffusers: "
            f"{error}; change scheduler_options or num_inference_steps",
        ) from error


def make_scheduler(class_name: str, config: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Return a diffusers scheduler of ``class_name`` from the model's ``config``, overridden by ``options``.

    Raises:
        JobError: code ``scheduler``: an option that the class does not have.

    """
    cls = getattr(diffusers, class_name)
    known = [key for key in inspect.signature(cls.__init__).parameters if key not in ("self", "kwargs")]
    for key in options:
        if key not in known:
            raise JobError(
                "scheduler",
                f"scheduler_options: {class_name} has no {key!r}; write one of {', '.join(known)}",
            )
    # the rest of the model's config belongs to other classes; diffusers would only warn about it
    own = {key: value for key, value in config.items() if key in known or key == "_use_default_values"}
    return cls.from_config(own, **options)


def make_plan(new_scheduler: Any, num_inference_steps: int) -> SamplingPlan:
    """Probe a scheduler and prove the plan against it.

    ``new_scheduler`` returns a fresh diffusers scheduler each time.

    Raises:
        JobError: code ``scheduler``: no linear recurrence over HISTORY calls gives the same samples.

    """
    probe = _Probe(new_scheduler(), num_inference_steps)
    rows = [probe.call(call) for call in range(probe.calls)]
    scheduler = type(probe.scheduler).__name__
    coefficients = torch.stack([row.coefficients for row in rows])
    numbers = (
        tuple(row.timestep for row in rows),
        tuple(row.input_scale for row in rows),
        coefficients,
        tuple(row.draws for row in rows),
        probe.init_noise_sigma,
    )
    plan = SamplingPlan(scheduler, *numbers, digest=_digest(scheduler, *numbers))
    _prove(plan, new_scheduler(), num_inference_steps)
    return plan


def step_arguments(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """Return the keywords that StableDiffusionPipeline gives to ``step``: eta 0 and the generator."""
    accepted = inspect.signature(scheduler.step).parameters
    offered = {"eta": 0.0, "generator": generator}
    return {key: value for key, value in offered.items() if key in accepted}


def scale_input(scheduler: Any, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Return the model's input; flow matching schedulers have no ``scale_model_input``."""
    if hasattr(scheduler, "scale_model_input"):
        scaled: torch.Tensor = scheduler.scale_model_input(sample, timestep)
        return scaled
    return sample


@dataclass(frozen=True)
class _Row:
    timestep: float
    input_scale: float
    coefficients: torch.Tensor  # float64 (COLUMNS,)
    draws: bool


class _Probe:
    """One scheduler driven over unit vectors; samples, outputs and noise are float64 vectors (space,)."""

    def __init__(self, scheduler: Any, num_inference_steps: int) -> None:
        scheduler.set_timesteps(num_inference_steps, device="cpu")
        self.scheduler = scheduler
        self.calls = len(scheduler.timesteps)
        self.init_noise_sigma = float(getattr(scheduler, "init_noise_sigma", 1.0))
        self.space = 1 + self.calls + 32  # the rest keeps dense noise apart from the unit vectors
        self.generator = torch.Generator("cpu").manual_seed(0)
        self.arguments = step_arguments(scheduler, self.generator)
        self.samples = [self._unit(0)]
        self.outputs: list[torch.Tensor] = []

    def call(self, call: int) -> _Row:
        """Make the scheduler's step ``call`` and return its recurrence."""
        timestep = self.scheduler.timesteps[call]
        sample = self.samples[-1]
        scaled = scale_input(self.scheduler, self._image(sample), timestep).flatten().double()
        input_scale = float(scaled @ sample / (sample @ sample))
        self._check(scaled, input_scale * sample)
        self.outputs.append(self._unit(1 + call))
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
        """Return the noise that ``step`` drew since ``before``, None where it drew none."""
        after = self.generator.get_state()
        if torch.equal(before, after):
            return None
        again = torch.Generator("cpu")
        for dtype in (
            torch.float64,
            torch.float32,
        ):  # some schedulers draw in float32 whatever the sample's dtype
            again.set_state(before)
            noise = torch.randn((1, 1, 1, self.space), generator=again, dtype=dtype)
            if torch.equal(again.get_state(), after) and self._explains(noise):
                return noise.flatten().double()
        raise self._refusal("its noise is not one normal draw of the sample's shape")

    def _explains(self, noise: torch.Tensor) -> bool:
        # in the dimensions that no unit vector owns, the new sample is made of noise alone, old and new
        columns = [*self.samples[-1 - HISTORY : -1], noise.flatten().double()]
        _, error = _fit(columns, self.samples[-1], rest=self.space - 32)
        return error < MAX_RESIDUAL

    def _shortest(self, noise: torch.Tensor | None) -> torch.Tensor:
        """Return the exact recurrence with the fewest and then the smallest terms: float64 (COLUMNS,)."""
        past = range(1, 1 + min(HISTORY, len(self.outputs)))
        fits = [(a + b, *self._fit_recurrence(a, b, noise)) for a in past for b in past]
        best = min(error for _, _, error in fits)
        if best > MAX_RESIDUAL:
            raise self._refusal(f"no linear recurrence over {HISTORY} calls gives the same samples")
        exact = [(terms, row) for terms, row, error in fits if error <= max(4 * best, EXACT)]
        return min(exact, key=lambda fit: (fit[0], float(fit[1].abs().max())))[1]

    def _fit_recurrence(self, a: int, b: int, noise: torch.Tensor | None) -> tuple[torch.Tensor, float]:
        """Fit ``a`` samples, ``b`` outputs and the noise; return float64 (COLUMNS,) and the worst error."""
        columns = [self.samples[-2 - k] for k in range(a)] + [self.outputs[-1 - k] for k in range(b)]
        columns += [] if noise is None else [noise]
        found, error = _fit(columns, self.samples[-1])
        row = torch.zeros(COLUMNS, dtype=torch.float64)
        row[:a], row[HISTORY : HISTORY + b] = found[:a], found[a : a + b]
        row[-1] = 0.0 if noise is None else found[-1]
        row[row.abs() < 1e-12] = 0.0  # rounding of float64, different on each machine
        return row, error

    def _check(self, got: torch.Tensor, wanted: torch.Tensor) -> None:
        if float((got - wanted).abs().max()) > MAX_RESIDUAL * max(1.0, float(got.abs().max())):
            raise self._refusal("its model input is not a multiple of the sample")

    def _refusal(self, why: str) -> JobError:
        return refusal(self.scheduler, why)


def refusal(scheduler: Any, why: str) -> JobError:
    """Return the error for a scheduler that has no plan, naming it and the setting that makes it so."""
    config = scheduler.config
    guilty = [key for key in _NON_LINEAR if config.get(key)]
    if guilty:
        cure = f"set {guilty[0]} to false in scheduler_options"
    elif config.get("skip_prk_steps") is False:  # PNDM's Runge-Kutta start looks back 13 calls
        cure = "set skip_prk_steps to true in scheduler_options"
    else:
        cure = "choose another scheduler"
    return JobError("scheduler", f"{type(scheduler).__name__} cannot be run as a linear plan: {why}; {cure}")


def _fit(columns: list[torch.Tensor], wanted: torch.Tensor, rest: int = 0) -> tuple[torch.Tensor, float]:
    """Return least squares' solution over the dimensions from ``rest`` on, and its worst relative error."""
    matrix = torch.stack(columns, dim=1)[rest:]
    wanted = wanted[rest:]
    norms = matrix.norm(dim=0).clamp(min=1e-12)
    found = torch.linalg.lstsq(matrix / norms, wanted[:, None], driver="gelsd").solution[:, 0] / norms
    error = float((matrix @ found - wanted).abs().max() / max(1.0, float(wanted.abs().max())))
    return found, error if math.isfinite(error) else math.inf


def replay(plan: SamplingPlan, start: torch.Tensor, model: Any, generator: torch.Generator) -> torch.Tensor:
    """Run a plan over one sample the plain way, in its dtype; the engine does the same for many at once.

    ``model(call)`` returns the model's output of a call; noise is drawn from ``generator`` in the sample's
    dtype.
    """
    coefficients = plan.coefficients.to(start.dtype)
    samples, outputs = [start], []
    for call in range(plan.calls):
        outputs.append(model(call))
        row = coefficients[call]
        new = torch.zeros_like(start)
        if plan.draws[call]:
            new = row[-1] * torch.randn(start.shape, generator=generator, dtype=start.dtype)
        for k in range(min(HISTORY, call + 1)):
            new = new + row[k] * samples[-1 - k] + row[HISTORY + k] * outputs[-1 - k]
        samples.append(new)
    return samples[-1]


def _prove(plan: SamplingPlan, scheduler: Any, num_inference_steps: int) -> None:
    """Compare the plan with ``scheduler`` over dense numbers so large (100 sigma) that any clipping bites."""
    scheduler.set_timesteps(num_inference_steps, device="cpu")
    source = torch.Generator("cpu").manual_seed(1)
    start = 100 * plan.init_noise_sigma * torch.randn((1, 2, 4, 4), generator=source)
    outputs = 100 * torch.randn((plan.calls, *start.shape), generator=source)
    generator = torch.Generator("cpu").manual_seed(2)
    arguments = step_arguments(scheduler, generator)
    sample = start
    for call, timestep in enumerate(scheduler.timesteps):
        scale_input(scheduler, sample, timestep)  # some schedulers insist on the call
        sample = scheduler.step(outputs[call], timestep, sample, **arguments, return_dict=False)[0]
    again = replay(plan, start, lambda call: outputs[call], torch.Generator("cpu").manual_seed(2))
    if not float((again - sample).abs().max()) <= MAX_REPLAY_ERROR * float(sample.abs().max()):
        raise refusal(scheduler, "its samples do not follow the recurrence of its unit responses")


def _digest(scheduler: str, *numbers: Any) -> str:
    digest = hashlib.sha256(scheduler.encode())
    for value in numbers:
        digest.update(torch.as_tensor(value, dtype=torch.float32).numpy().tobytes())
    return digest.hexdigest()

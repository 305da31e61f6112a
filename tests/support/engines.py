"""An engine in the test's process: make jobs, run the engine to its end, and a family whose methods fail."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tests.chaos.fake_worker import NoOpFamily

from latentfarm.job import Job, PromptSyntax
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.models import Family
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt


def make(index: int, **fields: Any) -> Job:
    """Return a job of three steps, with ``fields`` replaced."""
    defaults = {"prompt": f"image {index}", "seed": index, "num_inference_steps": 3}
    return Job(batch="b", index=index, **{**defaults, **fields})


def run(engine: Engine) -> dict[int, Rendered | Failed]:
    """Step until the engine is empty; return the outcomes by job index."""
    done = {}
    while engine.busy:
        for result in engine.step():
            done[result.job.index] = result
        engine.check_integrity()
    return done


def pixels(result: Rendered | Failed) -> bytes:
    """Return the pixels of a rendered image."""
    assert isinstance(result, Rendered), result
    return result.pixels.numpy().tobytes()


class Faulty:
    """A family with some methods replaced."""

    def __init__(self, family: Any, *, vae_dtype: torch.dtype = torch.float32, **methods: Any) -> None:
        self.family = family
        self.vae_dtype = vae_dtype
        self.__dict__ |= methods

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)


JOBS = [
    make(0, scheduler="euler", num_inference_steps=5),
    make(0, scheduler="euler_a", guidance_scale=1.0, num_inference_steps=4),
    make(0, scheduler="dpm++2m", width=96, height=64),
]


def render_alone(family: Family, job: Job) -> bytes:
    """Return the pixels of a job rendered alone, with three slots."""
    engine = Engine(family, slots=3)
    engine.admit(job)
    return pixels(run(engine)[0])


def run_isolating(engine: Engine) -> dict[int, Rendered | Failed]:
    """As ``run``, but go on after steps that raise, as the render loop does."""
    done: dict[int, Rendered | Failed] = {}
    while engine.busy:
        try:
            outcomes = engine.step()
        except Exception as error:  # noqa: BLE001 (any)
            outcomes = [*engine.isolate(error)]
        for each in outcomes:
            assert each.job.index not in done, "a job ends once"
            done[each.job.index] = each
        engine.check_integrity()
    return done


class BreakingFamily(NoOpFamily):
    """A fake family whose calls break while certain jobs take part; the jobs are those of ``make``.

    Args:
        encode, predict: indices of the jobs that break these calls; each job has its index in its prompt.
        below: the timestep below which ``predict`` breaks.
        error: makes the exception.

    Attributes:
        before_predict: called before each evaluation of the model, also of one that breaks.
    """

    def __init__(
        self,
        *,
        encode: Collection[int] = (),
        predict: Collection[int] = (),
        below: float = 1001.0,
        error: Callable[[str], Exception] = RuntimeError,
    ) -> None:
        super().__init__("breaking", torch.device("cpu"), torch.float32)
        self._bad = {"encode": {*encode}, "predict": {*predict}}
        self._below = below
        self._error = error
        self.before_predict: Callable[[], object] = lambda: None

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        """Return one token, the number in the prompt plus 1; 0 for an empty prompt."""
        del syntax
        number = "".join(filter(str.isdigit, prompt))
        return TokenizedPrompt(((int(number) + 1 if number else 0,),), count=3)

    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        marks = [prompt.tokens.chunks[0][0] for prompt in prompts]
        self._break("encode", (mark - 1 for mark in marks))
        return [{"encoder_hidden_states": torch.full((77, 4), float(mark))} for mark in marks]

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        self.before_predict()
        marks = conditioning["encoder_hidden_states"][:, 0, 0]
        self._break("predict", (int(mark) - 1 for mark in marks[timesteps < self._below]))
        return super().predict(latents, timesteps, conditioning)

    def _break(self, call: str, indices: Iterable[int]) -> None:
        broken = sorted(self._bad[call].intersection(indices))
        if broken:
            raise self._error(f"{call} of job {broken[0]} broke")


@contextmanager
def single_thread() -> Iterator[None]:
    """Let torch compute with one thread meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

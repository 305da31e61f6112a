"""Measure the cache of encoded prompts: a batch of 10^5 rows with 200 prompts, and the same after a restart.

    python -m tests.bench.bench_embeddings            # print the table
    python -m tests.bench.bench_embeddings --write    # also write it into docs/explanation/benchmarks.md

The text encoder is mini's. Its denoising model and decoder are replaced by ones that compute nothing, so that 10^5 rows
take minutes and not hours. For a row without a cache, 2,000 rows with 2,000 prompts are encoded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tests.bench.servers import temporary_folder
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.support.engines import Faulty

from latentfarm.job import Job
from latentfarm.settings import Settings
from latentfarm_worker.build import load_model, open_embeddings
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.text_encoders.embedding_files import EmbeddingFiles
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt

_PROMPTS, _SLOTS = 200, 32
#: numbers of one prompt of FLUX.1: 512 tokens of T5-XXL
_LARGE = (512, 4096)


@dataclass
class Encoding:
    """What the text encoder did: prompts, and seconds of all texts, those of the cache included."""

    prompts: int = 0
    seconds: float = 0.0


def make_engine(family: Any, files: EmbeddingFiles | None) -> tuple[Engine, Encoding]:
    """Return an engine that renders nothing, and what it encodes."""
    found = Encoding()

    def predict(latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        del timesteps, conditioning
        return torch.zeros_like(latents)

    def decode(latents: torch.Tensor, **_: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(latents), 8, 8, 3, dtype=torch.uint8), torch.ones(len(latents), dtype=torch.bool)

    def encode(prompts: list[Prompt]) -> Any:
        found.prompts += len(prompts)
        return family.encode(prompts)

    counted: Any = Faulty(family, predict=predict, decode=decode, encode=encode)
    engine = Engine(counted, slots=_SLOTS, embeddings=files)
    get = engine._texts.get

    def timed(*arguments: Any) -> list[Tensors]:
        began = time.perf_counter()
        try:
            return get(*arguments)
        finally:
            found.seconds += time.perf_counter() - began

    engine._texts.get = timed  # type: ignore[assignment, method-assign]
    return engine, found


def render(engine: Engine, rows: int, prompts: int) -> None:
    """Render a batch of one-step images whose prompts take turns."""
    for index in range(rows):
        prompt = f"a large red circle beside a small blue square, number {index % prompts}"
        engine.admit(Job(batch="b", index=index, prompt=prompt, seed=index, num_inference_steps=1, scheduler="euler"))
        while engine.free == 0:
            engine.step()
    while engine.busy:
        engine.step()


@contextmanager
def timer(seconds: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - began)


def measure_files(folder: Path, count: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each write and each read of an embedding of FLUX.1's size."""
    files = EmbeddingFiles(folder, conditions={}, max_bytes=2**32)
    writes: list[float] = []
    reads: list[float] = []
    prompts = [Prompt(TokenizedPrompt(((number,),), count=3)) for number in range(count)]
    for prompt in prompts:
        text = {"encoder_hidden_states": torch.randn(_LARGE).bfloat16()}
        with timer(writes):
            files.put(prompt, text)
            files.flush()
    for prompt in prompts:
        with timer(reads):
            assert files.get(prompt) is not None
    return writes, reads


def lines_of(
    rows: int, first: Encoding, again: Encoding, without: float, files: tuple[list[float], list[float]]
) -> list[Line]:
    # each row has a negative prompt, the empty one
    expected = _PROMPTS + 1
    return [
        Line(f"{rows:,} rows with {_PROMPTS} prompts: prompts encoded", first.prompts, "", expected),
        Line("the same after a restart: prompts encoded", again.prompts, "", 0),
        Line("seconds of the texts, first run", first.seconds, "s"),
        Line("seconds of the texts, after a restart", again.seconds, "s"),
        Line("seconds of the texts without a cache, by 2,000 rows", without, "s"),
        Line("without a cache, against the first run", without / first.seconds, "times", 10, at_least=True),
        Line("an embedding of FLUX.1, 4 MB: write, median", median(files[0]) * 1000, "ms"),
        Line("an embedding of FLUX.1, 4 MB: read and check, median", median(files[1]) * 1000, "ms"),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    rows, sample = (2_000, 200) if arguments.quick else (100_000, 2_000)
    conditions = Conditions()
    with temporary_folder() as folder:
        settings = Settings(cache_dir=folder / "cache")
        runs = []
        for _ in range(2):
            # each with a model of its own, as two workers one after the other
            family = load_model(settings)
            files = open_embeddings(family, settings)
            assert files is not None
            engine, encoding = make_engine(family, files)
            render(engine, rows, _PROMPTS)
            files.flush()
            runs.append(encoding)
            print(f"  {encoding.prompts} prompts encoded, {encoding.seconds:.2f} s", flush=True)
        plain = load_model(settings)
        engine, encoding = make_engine(plain, None)
        engine._texts._max_bytes = 0
        render(engine, sample, sample)
        without = encoding.seconds * rows / sample
        measured = measure_files(folder / "large", 5 if arguments.quick else 50)
    note = "Each row has two texts, its prompt and the empty negative prompt. The encoder is mini's, in float32."
    lines = lines_of(rows, runs[0], runs[1], without, measured)
    return report("embeddings", lines, conditions, write=arguments.write, note=note)


if __name__ == "__main__":
    raise SystemExit(main())

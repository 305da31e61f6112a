"""Images that were put down and taken up, rendered once more by themselves: ``latentfarm verify`` on some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tests.chaos.fake_worker import ALIAS, NoOpFamily, register
from tests.chaos.faults import seeded

from latentfarm.farm import Farm
from latentfarm_worker.tools.verification import Verification

#: images of each model that are rendered again
_MOST = {ALIAS: 60, "mini": 2}


def images_that_differ(farm: Farm, source: Path, put_down: Mapping[str, Sequence[int]], *, seed: int) -> list[str]:
    """Return what differs between images and those rendered alone, without an interruption.

    Args:
        farm: the farm.
        source: the folder of the fake model.
        put_down: indices of jobs by batch.
        seed: chooses the images if there are too many.
    """
    found: list[str] = []
    chance, left = seeded(seed), dict(_MOST)
    with _fake_family():
        for name in chance.sample(sorted(put_down), len(put_down)):
            batch = farm.batch(name)
            model = farm.ledger.batch(name).model
            indices = chance.sample(put_down[name], min(left[model], len(put_down[name])))
            left[model] -= len(indices)
            settings = farm.settings.model_copy(
                update={"model": model, "model_source": str(source) if model == ALIAS else ""}
            )
            found += [
                f"{result.job}: {result.differences or result.other_conditions}"
                for result in Verification(batch, settings, dtype=None).run(sorted(indices))
                if result.differences or not result.same_bytes
            ]
    return found


@contextmanager
def _fake_family() -> Iterator[None]:
    """Have the fake model in this process, with steps that take no time."""
    threads = torch.get_num_threads()
    try:
        register(NoOpFamily)
        yield
    finally:
        torch.set_num_threads(threads)

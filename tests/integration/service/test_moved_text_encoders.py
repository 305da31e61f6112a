"""A worker whose text encoders are moved encodes the prompts of the rows behind its jobs with theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.rendering import SMALL, render_loop
from tests.support.tiny import make_tiny

from latentfarm import Farm
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.integration


def test_a_batch_is_encoded_in_one_move_of_the_text_encoders_and_keeps_its_bytes(farm: Farm, tmp_path: Path) -> None:
    prompts = [f"cat {number}" for number in range(12)]
    files = []
    for moved in (False, True):
        family: Any = load_family(make_tiny(tmp_path / "tiny"), dtype=torch.float32, device=torch.device("cpu"))
        homes: list[int] = []
        weight = next(family.modules["text_encoder"].parameters())
        at_home, encode = weight.data_ptr(), family.encode

        def watched(given: Any, family: Any = family, encode: Any = encode, homes: list[int] = homes) -> Any:
            homes.append(next(family.modules["text_encoder"].parameters()).data_ptr())
            return encode(given)

        family.encode = watched
        if moved:
            family.encoder_placement.placement = "offload"
        rows = [{"prompt": prompt, "seed": 0, **SMALL} for prompt in prompts]
        batch = farm.submit(rows, batch="b", model="mini")
        with render_loop(farm, family) as loop:
            loop.render_all()
        assert batch.status().done == 12
        files.append({result["index"]: result["sha256"] for result in batch.results()})
        if moved:
            # thirteen prompts, the empty negative one among them, in groups of four while they were there once
            assert len(homes) == 4
            assert len({*homes}) == 1
            assert at_home not in homes
        else:
            assert {*homes} == {at_home}
        batch.delete()
    assert len(files[0]) == 12
    assert files[0] == files[1]

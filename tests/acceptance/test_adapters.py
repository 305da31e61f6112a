"""The adapters of mini and input images do what their names promise, all kinds of rows in one batch, end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.conftest import Command
from tests.support.adapter_rows import OPTIONS, PROMPTS, read_images, write_rows

from mini_training import measure_adapters as measured
from mini_training.adapter_judge import is_outlined, is_striped

pytestmark = pytest.mark.acceptance

EACH = 3


@pytest.mark.slow
def test_each_row_of_a_mixed_batch_has_its_own_style_edges_word_and_input_image(
    latentfarm: Command, tmp_path: Path
) -> None:
    makers = (measured.style_rows, measured.edge_rows, measured.nested_rows, measured.image_rows, measured.inpaint_rows)
    rows = [row for make in makers for row in make(EACH)]
    # a stride that shares no factor with the number of rows puts each kind beside others
    rows = [rows[number * 7 % len(rows)] for number in range(len(rows))]
    write_rows(rows, tmp_path)
    result = latentfarm("render", PROMPTS, "-o", "out", *OPTIONS)
    assert result.returncode == 0, result.stderr
    pairs = list(zip(rows, read_images(tmp_path / "out"), strict=True))
    figures = {
        kind: [float(figure(image, row)) for row, image in pairs if row.kind == kind]
        for kind, figure in measured.FIGURES.items()
    }
    plain = [image for row, image in pairs if row.kind == "plain"]
    # the bars of the bench are 90% and 0.8; of three, one may miss
    assert sum(figures["outlined"]) >= EACH - 1
    assert sum(figures["striped"]) >= EACH - 1
    assert not any(is_outlined(image) or is_striped(image) for image in plain)
    assert np.mean(figures["edges"]) >= 0.7
    assert np.mean(figures["no edges"]) < np.mean(figures["edges"]) - 0.2
    assert sum(figures["nested"]) >= EACH / 2
    assert not any(figures["not nested"])
    assert sum(figures["img2img"]) >= EACH - 1
    assert max(figures["inpaint"]) <= 2

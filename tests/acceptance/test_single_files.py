"""A single file renders by the real commands, with the bytes of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.conftest import Command
from tests.support.original_layouts import write_single_file
from tests.support.tiny import make_tiny

pytestmark = pytest.mark.acceptance

STEPS = ("--num-inference-steps", "2", "--seed", "5")


def pixels(folder: Path) -> list[bytes]:
    return [Image.open(path).tobytes() for path in sorted(folder.glob("0*.png"))]


@pytest.mark.slow
def test_a_file_with_a_base_and_another_vae_renders_as_the_folder_that_has_both(
    latentfarm: Command, tmp_path: Path
) -> None:
    folder = make_tiny(tmp_path / "sdxl", kind="sdxl")
    file = write_single_file(folder, tmp_path / "model.safetensors", "sdxl", without=("vae",))
    (tmp_path / "p.txt").write_text("a red circle\na blue square\n", encoding="utf-8")
    refused = latentfarm("render", "p.txt", "-o", "none", "--model", "none.safetensors")
    assert refused.returncode == 2
    assert "model 'none.safetensors': there is no such file; check the path" in refused.stderr
    options = ("--model", f"one={file}", "--base", str(folder), "--vae", str(folder / "vae"))
    # an image's bytes depend on it, and a busy machine may measure another for each model
    rows = {"LATENTFARM_MICRO_BATCH": "4"}
    one = latentfarm("render", "p.txt", "-o", "one", *STEPS, *options, **rows)
    assert one.returncode == 0, one.stderr
    other = latentfarm("render", "p.txt", "-o", "other", *STEPS, "--model", f"other={folder}", **rows)
    assert other.returncode == 0, other.stderr
    assert len(pixels(tmp_path / "one")) == 2
    assert pixels(tmp_path / "one") == pixels(tmp_path / "other")

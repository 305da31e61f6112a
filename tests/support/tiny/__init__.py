"""Complete models with random weights and few parameters, which load like trained ones.

Their images are coloured noise, but they depend on seed, prompt, steps and scheduler as those of a trained model do.
A family's kinds are in a module of their own, and their writers in ``_WRITERS``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from tests.support.tiny import flux, flux2, pixart, sd3, stable_diffusion, z_image
from tests.support.tiny.stable_diffusion import NATIVE, SD_SCHEDULE

__all__ = ["NATIVE", "SD_SCHEDULE", "Kind", "make_tiny"]

Kind = Literal[
    "sd1",
    "sd2",
    "sdxl",
    "sd3",
    "sd3-no-t5",
    "flux",
    "schnell",
    "chroma",
    "flux2",
    "flux2-distilled",
    "zimage",
    "zimage-dynamic",
    "pixart",
]

#: by kind, what writes its model into an empty folder; it gets the kind, and torch's generator is seeded
_WRITERS: Mapping[str, Callable[[Path, str], None]] = {
    **dict.fromkeys(("sd1", "sd2", "sdxl"), stable_diffusion.write),
    **dict.fromkeys(("sd3", "sd3-no-t5"), sd3.write),
    **dict.fromkeys(("flux", "schnell"), flux.write),
    "chroma": flux.write_chroma,
    **dict.fromkeys(("flux2", "flux2-distilled"), flux2.write),
    **dict.fromkeys(("zimage", "zimage-dynamic"), z_image.write),
    "pixart": pixart.write,
}


def make_tiny(directory: Path, *, seed: int = 0, kind: Kind = "sd1") -> Path:
    """Write the model as a diffusers folder and return ``directory``. An existing model stays unchanged.

    ``sd1`` predicts the noise (epsilon), with convolutional projections in the transformers; ``sd2`` predicts the
    velocity, with linear projections and a number of heads for each level; ``sdxl`` has two text encoders of different
    width and padding, and a U-Net conditioned on the projected text and sizes. ``sd3`` is a flow-matching transformer
    with three text encoders; ``sd3-no-t5`` lacks the third. ``flux`` embeds its guidance, and its noise schedule
    depends on the image's size; ``schnell`` does neither, and ``chroma`` has T5 as its only text encoder. ``flux2``
    reads three layers of Qwen3, and its schedule depends on size and steps; ``flux2-distilled`` takes no guidance.
    ``zimage`` reads as much of Qwen3 as a prompt needs; the schedule of ``zimage-dynamic`` depends on the image's size.
    ``pixart`` predicts the noise and its variance. The bytes depend on ``seed`` and ``kind`` only. Several processes
    may make the same folder at once.
    """
    directory = Path(directory)
    if (directory / "model_index.json").is_file():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _WRITERS[kind](draft, kind)
        draft.chmod(0o755)
        try:
            draft.rename(directory)
        except OSError:
            if not (directory / "model_index.json").is_file():  # no other process made it
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return directory

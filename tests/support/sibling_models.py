"""Two tiny models with byte-equal text encoders and VAEs, as fine-tuned models of one base have."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.tiny import make_tiny


def make_siblings(folder: Path) -> tuple[Path, Path]:
    """Write two models that differ in their U-Net, and return their folders."""
    first, second = make_tiny(folder / "first"), make_tiny(folder / "second", seed=1)
    for part in ("text_encoder", "vae"):
        shutil.rmtree(second / part)
        shutil.copytree(first / part, second / part)
    return first, second

"""The bundled small Stable Diffusion model.

``MODEL_DIR`` is a complete diffusers folder: ``StableDiffusionPipeline.from_pretrained(MODEL_DIR)`` loads it, as does
everything that loads Stable Diffusion 1.x. Importing this package imports neither torch nor diffusers.
"""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).resolve().parent / "model"
FLOW_DIR: Path = Path(__file__).resolve().parent / "flow" / "model"

__all__ = ["FLOW_DIR", "MODEL_DIR"]

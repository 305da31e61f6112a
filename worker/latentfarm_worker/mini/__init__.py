"""The bundled models: mini, a small Stable Diffusion, and mini-flow, a small FLUX.1.

``MODEL_DIR`` and ``FLOW_DIR`` are complete diffusers folders, which ``StableDiffusionPipeline.from_pretrained`` and
``FluxPipeline.from_pretrained`` load. Importing this package imports neither torch nor diffusers.
"""

from pathlib import Path

from latentfarm.names import DEFAULT_MODEL

_HERE = Path(__file__).resolve().parent
MODEL_DIR: Path = _HERE / "model"
#: adapters of mini
ADAPTERS_DIR: Path = _HERE / "adapters"
FLOW_DIR: Path = _HERE / "flow" / "model"

#: alias -> folder
BUNDLED = {DEFAULT_MODEL: MODEL_DIR, "mini-flow": FLOW_DIR}

__all__ = ["ADAPTERS_DIR", "BUNDLED", "FLOW_DIR", "MODEL_DIR", "locate"]


def locate(source: str | Path, *, alias: str = "") -> str | Path:
    """Return the folder of a bundled model, else the source itself.

    Without a source, the model is the bundled one of the alias [default: mini].
    """
    return BUNDLED.get(str(source) if source else alias, source or MODEL_DIR)

"""Stable Diffusion's safety checker: CLIP's image encoder, and the texts of 17 unsafe concepts as vectors.

The scores are those of diffusers' ``StableDiffusionSafetyChecker``, whose ``forward`` makes images black.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.functional import linear, normalize

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints.folder import read_json, weight_files
from latentfarm_worker.clip_pixels import ClipPixels

#: added to the scores of concepts, once a concept of special care is found
_ADJUSTMENT = 0.01
_DIGITS = 3
_VECTORS = ("concept_embeds", "special_care_embeds", "concept_embeds_weights", "special_care_embeds_weights")


class SafetyScores(NamedTuple):
    """The scores of an image: cosines less their thresholds, by the concept's number. Above 0 a concept is there.

    ``special_care``: concepts that lower the threshold of the others by 0.01.
    """

    concepts: tuple[float, ...]
    special_care: tuple[float, ...]

    @property
    def found(self) -> tuple[int, ...]:
        """Return the numbers of the concepts that are there."""
        return tuple(number for number, score in enumerate(self.concepts) if score > 0)

    def as_receipt(self) -> dict[str, Any]:
        """Return the flag and the scores in a JSON form."""
        named = {
            name: {str(number): score for number, score in enumerate(scores)}
            for name, scores in zip(self._fields, self, strict=True)
        }
        return {"flagged": bool(self.found), **named}


class SafetyChecker:
    """One checker, on the host in float32. It checks one image in a call, so an image's scores do not depend on others.

    Args:
        vision: transformers' CLIPVisionModel.
        tensors: ``visual_projection.weight`` (P, D), ``concept_embeds`` (17, P), ``special_care_embeds`` (3, P) and the
            thresholds of both, ``concept_embeds_weights`` and ``special_care_embeds_weights``.
        preprocessing: how images become its input.
    """

    def __init__(self, vision: Any, tensors: Mapping[str, torch.Tensor], preprocessing: ClipPixels) -> None:
        self._vision, self._preprocessing = vision, preprocessing
        self._projection = tensors["visual_projection.weight"]
        concepts, special, thresholds, special_thresholds = (tensors[name] for name in _VECTORS)
        self._concepts, self._thresholds = normalize(concepts), thresholds
        self._special, self._special_thresholds = normalize(special), special_thresholds

    @classmethod
    def load(cls, folder: Path) -> SafetyChecker:
        """Load the checker of a folder: ``config.json``, its weights, and ``preprocessor_config.json`` if there is one.

        Raises:
            ModelError: a file is missing or damaged, or is not a checker's.
        """
        from transformers import CLIPVisionConfig, CLIPVisionModel

        config = read_json(folder / "config.json")
        tensors: dict[str, torch.Tensor] = {}
        try:
            for path in weight_files(folder):
                tensors.update({name: tensor.float() for name, tensor in load_file(path).items()})
            vision = (
                CLIPVisionModel(CLIPVisionConfig(**config["vision_config"])).eval().requires_grad_(requires_grad=False)
            )
            # older releases of transformers have one level more
            parts = {
                name.removeprefix("vision_model.").removeprefix("vision_model."): tensor
                for name, tensor in tensors.items()
                if name.startswith("vision_model.") and not name.endswith(".position_ids")
            }
            vision.load_state_dict(parts)
            places = (folder, folder.parent / "feature_extractor")
            return cls(vision, tensors, ClipPixels.read(*places, side=vision.config.image_size))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{folder}: is not a safety checker that can be loaded ({type(error).__name__}: {error}); use one "
                "saved by diffusers, such as CompVis/stable-diffusion-safety-checker"
            ) from error

    @torch.inference_mode()
    def scores(self, pixels: torch.Tensor) -> SafetyScores:
        """Return the scores of an image, uint8 (H, W, 3) on the host."""
        pooled = self._vision(self._preprocessing.run(pixels)).pooler_output
        image = normalize(linear(pooled, self._projection))
        special = _rounded((image @ self._special.T)[0], self._special_thresholds, 0.0)
        # diffusers adjusts the special concepts that follow, too
        first = next((number for number, score in enumerate(special) if score > 0), None)
        if first is not None:
            later = _rounded((image @ self._special.T)[0], self._special_thresholds, _ADJUSTMENT)
            special = (*special[: first + 1], *later[first + 1 :])
        adjustment = 0.0 if first is None else _ADJUSTMENT
        return SafetyScores(_rounded((image @ self._concepts.T)[0], self._thresholds, adjustment), special)


def _rounded(cosines: torch.Tensor, thresholds: torch.Tensor, adjustment: float) -> tuple[float, ...]:
    # in NumPy's float32, in the order of diffusers, so that a score at a half of its last digit is rounded alike
    pairs = zip(cosines.numpy(), thresholds.tolist(), strict=True)
    return tuple(round(float(round(cosine - threshold + adjustment, _DIGITS)), _DIGITS) for cosine, threshold in pairs)

"""How well an image shows its prompt, by a CLIP model of the operator's own."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints.folder import weight_files
from latentfarm_worker.checkpoints.tensor_file import read_tensor_file
from latentfarm_worker.checkpoints.tokenizer import load_tokenizer
from latentfarm_worker.clip_pixels import ClipPixels

_DIGITS = 4
#: texts whose vectors are kept: the rows of a sweep have the same prompt
_TEXTS = 256


class ClipScorer:
    """The cosine of a text's and an image's vectors, from -1 to 1; a higher one shows more of the text.

    It is on the host in float32, and computes one image in a call, so a score does not depend on other images. Of a
    text the tokens that the model's context has room for are read.

    Args:
        model: transformers' CLIPModel.
        tokenizer: its tokenizer.
        preprocessing: how images become its input.
    """

    def __init__(self, model: Any, tokenizer: Any, preprocessing: ClipPixels) -> None:
        self._model, self._tokenizer, self._preprocessing = model, tokenizer, preprocessing
        self._length = int(model.config.text_config.max_position_embeddings)
        self._text_vector = lru_cache(maxsize=_TEXTS)(self._encode)

    @classmethod
    def load(cls, folder: Path) -> ClipScorer:
        """Load a model that transformers saved as CLIPModel, in safetensors, with its tokenizer.

        Raises:
            ModelError: a file is missing or damaged, or is not of such a model.
        """
        from transformers import CLIPModel, CLIPTokenizer

        try:
            for path in weight_files(folder):
                read_tensor_file(path)
            tokenizer = load_tokenizer(folder, "", CLIPTokenizer)
            model, report = CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            if missing := sorted(report["missing_keys"]):
                raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
            preprocessing = ClipPixels.read(folder, side=model.config.vision_config.image_size)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"LATENTFARM_CLIP_SCORER is {str(folder)!r}, which is not a CLIP model that can be loaded "
                f"({type(error).__name__}: {error}); use a folder of transformers' CLIPModel in safetensors, such as "
                "openai/clip-vit-large-patch14"
            ) from error
        return cls(model.eval().requires_grad_(requires_grad=False), tokenizer, preprocessing)

    @torch.inference_mode()
    def __call__(self, text: str, image: Image.Image) -> float:
        """Return the cosine, rounded to four digits."""
        pixels = self._preprocessing.run(torch.from_numpy(np.array(image)))
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        vector = normalize(self._model.visual_projection(pooled))
        return round(float((vector @ self._text_vector(text).T).item()), _DIGITS)

    def _encode(self, text: str) -> torch.Tensor:
        """Return the unit vector of a text, (1, P)."""
        inputs = self._tokenizer([text], truncation=True, max_length=self._length, return_tensors="pt")
        pooled = self._model.text_model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).pooler_output
        return normalize(self._model.text_projection(pooled))

"""A safety checker with random weights and few parameters, whose thresholds some images reach."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

#: pixels of a side of its input
SIDE = 32
_WIDTH, _PROJECTED = 16, 24


def write_checker(folder: Path, images: Sequence[torch.Tensor], *, share: float = 31 / 32) -> Path:
    """Write ``safety_checker`` and ``feature_extractor`` into a model's folder; return the folder.

    A concept's threshold is what this share of the images, uint8 (H, W, 3), does not exceed; so some are flagged.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
    from PIL import Image
    from transformers import CLIPConfig
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    vision = {
        "hidden_size": _WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
    }
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=_PROJECTED)).eval()
        for module in checker.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(std=0.5)
        checker.concept_embeds.normal_()
        checker.special_care_embeds.normal_()
        inputs = processor([Image.fromarray(image.numpy()) for image in images], return_tensors="pt").pixel_values
        embeds = checker.visual_projection(checker.vision_model(inputs)[1])
        for name, below in (("concept_embeds", share), ("special_care_embeds", 3 / 4)):
            cosines = cosine_distance(embeds, getattr(checker, name)).sort(dim=0).values
            getattr(checker, f"{name}_weights").copy_(cosines[int(below * len(images))])
    checker.save_pretrained(folder / "safety_checker")
    processor.save_pretrained(folder / "feature_extractor")
    return folder

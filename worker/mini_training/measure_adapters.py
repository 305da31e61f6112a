"""Rows that use mini's adapters and input images, the judgement of what was drawn, and diffusers' drawing of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)

from latentfarm_worker.adapters.controlnet.canny import canny
from latentfarm_worker.mini import ADAPTERS_DIR
from mini_training import captions, world
from mini_training.adapter_judge import edge_overlap, is_nested, is_outlined, is_striped
from mini_training.controlnet_stage import as_condition, edge_maps, free_scene
from mini_training.embedding_stage import WORD, nested_scenes, with_word
from mini_training.judge import judge
from mini_training.lora_stage import Lora
from mini_training.measure import BATCH, GUIDANCE, STEPS, held_out_combinations, load_pipeline, scenes_of

STRENGTH = 0.4
# What an inpainting row paints again: a square around its object, of this share of the image's side.
REPAINTED = 0.5


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """One image to draw. ``scene`` is what its judge compares with; the images are inputs, uint8 (S, S, 3)."""

    kind: str
    prompt: str
    seed: int
    scene: world.Scene
    lora: str = ""
    edges_of: world.Image | None = None
    image: world.Image | None = None
    mask: world.Image | None = None


def style_rows(count: int) -> list[AdapterRow]:
    """Return rows of held-out prompts: text only, and the same prompts and seeds with each LoRA."""
    scenes = scenes_of(held_out_combinations(count, seed=6))
    kinds = {"plain": "", "outlined": "outlined", "striped": "striped"}
    return [
        AdapterRow(kind, captions.full_caption(scene), 100 + number, scene, lora=lora)
        for number, scene in enumerate(scenes)
        for kind, lora in kinds.items()
    ]


def edge_rows(count: int) -> list[AdapterRow]:
    """Return rows with the edges of their scenes, the same by their captions alone, and rows of free scenes' edges."""
    rng = np.random.default_rng(510)
    rows = []
    for number, scene in enumerate(scenes_of(held_out_combinations(count, seed=9), seed=9)):
        row = AdapterRow("edges", captions.full_caption(scene), 20_000 + number, scene, edges_of=world.draw(scene))
        free = free_scene(rng)
        rows += [
            row,
            dataclasses.replace(row, kind="no edges", edges_of=None),
            AdapterRow("free edges", captions.full_caption(free), row.seed, free, edges_of=world.draw(free)),
        ]
    return rows


def nested_rows(count: int) -> list[AdapterRow]:
    """Return rows with the word ``<nested>``, and the same without it."""
    rows = []
    for number, scene in enumerate(nested_scenes(count, seed=511)):
        text = captions.full_caption(scene)
        row = AdapterRow("nested", with_word(text, scene.things[0].shape), 30_000 + number, scene)
        rows += [row, dataclasses.replace(row, kind="not nested", prompt=text)]
    return rows


def image_rows(count: int) -> list[AdapterRow]:
    """Return rows of img2img, whose prompts name another shape than their images show, and the rest as it is."""
    rows = []
    for number, scene in enumerate(scenes_of(held_out_combinations(count, seed=7), seed=7)):
        shapes = [shape for shape in world.SHAPES if shape != scene.things[0].shape]
        other = dataclasses.replace(scene.things[0], shape=shapes[number % len(shapes)])
        text = captions.full_caption(dataclasses.replace(scene, things=(other,)))
        rows.append(AdapterRow("img2img", text, 40_000 + number, scene, image=world.draw(scene)))
    return rows


def inpaint_rows(count: int) -> list[AdapterRow]:
    """Return rows that paint the object's surroundings again, in the prompt's words."""
    rows = []
    for number, scene in enumerate(scenes_of(held_out_combinations(count, seed=8), seed=8)):
        thing = scene.things[0]
        axis = (np.arange(world.NATIVE) + 0.5) / world.NATIVE
        inside = (np.abs(axis - thing.y) < REPAINTED / 2)[:, None] & (np.abs(axis - thing.x) < REPAINTED / 2)
        mask = np.repeat(inside[..., None], 3, axis=2).astype(np.uint8) * 255
        text = captions.full_caption(scene)
        rows.append(AdapterRow("inpaint", text, 50_000 + number, scene, image=world.draw(scene), mask=mask))
    return rows


def edges_kept(image: world.Image, scene: world.Scene) -> float:
    """Return the overlap of an image's edges with those of the scene."""
    return edge_overlap(canny(image), canny(world.draw(scene)))


def place_and_colours_kept(image: world.Image, scene: world.Scene) -> bool:
    """Return whether an image's object has the scene's place and colours."""
    verdict, thing = judge(image), scene.things[0]
    seen = verdict.thing
    return (verdict.background, seen.colour, seen.place) == (scene.background, thing.colour, scene.place)


def difference_kept(image: world.Image, row: AdapterRow) -> int:
    """Return the largest difference of a channel from the input image where the mask is black."""
    if row.image is None or row.mask is None:
        raise ValueError(f"a row of kind {row.kind!r} has no image or no mask")
    kept = row.mask == 0
    return int(np.abs(image[kept].astype(int) - row.image[kept].astype(int)).max())


#: by kind of row: the figure of one image
FIGURES: dict[str, Callable[[world.Image, AdapterRow], float]] = {
    "outlined": lambda image, _row: is_outlined(image),
    "striped": lambda image, _row: is_striped(image),
    "nested": lambda image, _row: is_nested(image),
    "not nested": lambda image, _row: is_nested(image),
    "edges": lambda image, row: edges_kept(image, row.scene),
    "free edges": lambda image, row: edges_kept(image, row.scene),
    "no edges": lambda image, row: edges_kept(image, row.scene),
    "img2img": lambda image, row: place_and_colours_kept(image, row.scene),
    "inpaint": difference_kept,
}


def draw_by_diffusers(rows: Sequence[AdapterRow], adapters: Path = ADAPTERS_DIR) -> list[world.Image]:
    """Return the images of rows other than inpainting ones, by diffusers' own pipelines, in the order of the rows."""
    images: dict[int, world.Image] = {}
    groups: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault((row.kind, row.lora), []).append(number)
    for numbers in groups.values():
        call = _call_of(rows[numbers[0]], adapters)
        for first in range(0, len(numbers), BATCH):
            some = numbers[first : first + BATCH]
            values = call([rows[number] for number in some])
            images.update(zip(some, (values * 255).round().astype(np.uint8), strict=True))
    return [images[number] for number in range(len(rows))]


Call = Callable[[list[AdapterRow]], np.ndarray]


def _call_of(row: AdapterRow, adapters: Path) -> Call:
    """Return what draws rows of the kind of this one."""
    pipe = load_pipeline()
    if row.lora:
        with_lora(pipe, adapters / f"{row.lora}.safetensors")
    if WORD in row.prompt:
        pipe.load_textual_inversion(adapters / "nested.safetensors", token=WORD)
    if row.edges_of is not None:
        net = ControlNetModel.from_pretrained(adapters / "edges", torch_dtype=torch.float32)
        pipe = StableDiffusionControlNetPipeline(**pipe.components, controlnet=net, requires_safety_checker=False)
    elif row.image is not None:
        pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return lambda rows: _drawn(pipe, rows)


def _drawn(pipe: StableDiffusionPipeline, rows: list[AdapterRow]) -> np.ndarray:
    """Return the images of rows of one kind in [0, 1], (B, S, S, 3)."""
    more: dict[str, object] = {}
    controls = [row.edges_of for row in rows if row.edges_of is not None]
    starts = [row.image for row in rows if row.image is not None]
    if controls:
        more = {"image": as_condition(edge_maps(controls))}
    elif starts:
        pixels = torch.from_numpy(np.stack(starts)).permute(0, 3, 1, 2).float() / 255
        more = {"image": pixels, "strength": STRENGTH}
    values: np.ndarray = pipe(
        [row.prompt for row in rows],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator().manual_seed(row.seed) for row in rows],
        output_type="np",
        **more,
    ).images
    return values


def with_lora(pipe: StableDiffusionPipeline, path: Path) -> None:
    """Let a pipeline's denoiser use a LoRA's file from now on, without peft, which ``load_lora_weights`` requires."""
    lora = Lora(pipe.unet)
    lora.read(path)
    lora.requires_grad_(requires_grad=False).attach(pipe.unet)

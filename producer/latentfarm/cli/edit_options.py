"""The prompt options for input images, adapters and a second stage. Each has the name of its field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from latentfarm.names import TRANSPARENT

HEADING = "Image options"
#: how a source begins that is no path
_ADDRESS = re.compile(rf"(?:{TRANSPARENT})?(?:[A-Za-z][A-Za-z0-9+.-]+://|data:|sha256:)")

Image = Annotated[
    str | None, typer.Option("--image", metavar="SOURCE", help="Image to begin with: file, s3://, https:// or data:")
]
MaskImage = Annotated[
    str | None, typer.Option("--mask-image", metavar="SOURCE", help="White is painted again, black is kept")
]
Strength = Annotated[
    float | None,
    typer.Option("--strength", metavar="SHARE", help="Share of the steps that is made [default: 0.8, with a mask 1]"),
]
Resize = Annotated[
    str | None,
    typer.Option("--resize", metavar="HOW", help="crop, pad or stretch inputs of another size [default: refuse them]"),
]
MaskBlur = Annotated[
    int | None, typer.Option("--mask-blur", metavar="PIXELS", help="Blur of the mask's edge [default: 0]")
]
Lora = Annotated[list[str] | None, typer.Option("--lora", metavar="NAME[:SCALE]", help="LoRA to apply (repeatable)")]
Controlnet = Annotated[
    list[str] | None, typer.Option("--controlnet", metavar="NAME", help="ControlNet to follow (repeatable)")
]
ControlImage = Annotated[
    list[str] | None,
    typer.Option("--control-image", metavar="SOURCE", help="Image that it follows, one for each or one for all"),
]
ConditioningScale = Annotated[
    list[str] | None,
    typer.Option("--controlnet-conditioning-scale", metavar="SCALE", help="How strongly it is followed [default: 1]"),
]
GuidanceStart = Annotated[
    list[str] | None,
    typer.Option("--control-guidance-start", metavar="SHARE", help="Share of the steps before it is on [default: 0]"),
]
GuidanceEnd = Annotated[
    list[str] | None,
    typer.Option("--control-guidance-end", metavar="SHARE", help="Share of the steps when it ends [default: 1]"),
]
Preprocessor = Annotated[
    list[str] | None,
    typer.Option("--control-preprocessor", metavar="KIND", help="canny finds edges in the image [default: none]"),
]
IpAdapter = Annotated[
    list[str] | None, typer.Option("--ip-adapter", metavar="NAME", help="IP-Adapter to use (repeatable)")
]
IpAdapterImage = Annotated[
    list[str] | None,
    typer.Option("--ip-adapter-image", metavar="SOURCE", help="Image that is its prompt, one for each or one for all"),
]
IpAdapterScale = Annotated[
    list[str] | None,
    typer.Option("--ip-adapter-scale", metavar="SCALE", help="Weight of the image prompt [default: 1]"),
]
HiresScale = Annotated[
    float | None,
    typer.Option("--hires-scale", metavar="FACTOR", help="Render again, so many times as large, such as 2"),
]
HiresSteps = Annotated[
    int | None,
    typer.Option("--hires-steps", metavar="N", help="Steps of the second stage [default: those of the first]"),
]
HiresStrength = Annotated[
    float | None,
    typer.Option("--hires-strength", metavar="SHARE", help="Share of them that is made [default: 0.7]"),
]
HiresUpscaler = Annotated[
    str | None,
    typer.Option("--hires-upscaler", metavar="KIND", help="latent or pixel: what is enlarged [default: latent]"),
]
Refiner = Annotated[str | None, typer.Option("--refiner", metavar="NAME", help="Refiner that makes the last steps")]
RefinerStart = Annotated[
    float | None,
    typer.Option("--refiner-start", metavar="SHARE", help="Share of the steps before it begins [default: 0.8]"),
]
Safety = Annotated[
    str | None,
    typer.Option("--safety", metavar="MODE", help="score or refuse images of unsafe concepts, or off [default: off]"),
]


def edit_fields(
    image: Image = None,
    mask_image: MaskImage = None,
    strength: Strength = None,
    resize: Resize = None,
    mask_blur: MaskBlur = None,
    lora: Lora = None,
    controlnet: Controlnet = None,
    control_image: ControlImage = None,
    controlnet_conditioning_scale: ConditioningScale = None,
    control_guidance_start: GuidanceStart = None,
    control_guidance_end: GuidanceEnd = None,
    control_preprocessor: Preprocessor = None,
    ip_adapter: IpAdapter = None,
    ip_adapter_image: IpAdapterImage = None,
    ip_adapter_scale: IpAdapterScale = None,
    hires_scale: HiresScale = None,
    hires_steps: HiresSteps = None,
    hires_strength: HiresStrength = None,
    hires_upscaler: HiresUpscaler = None,
    refiner: Refiner = None,
    refiner_start: RefinerStart = None,
    safety: Safety = None,
) -> dict[str, Any]:
    """Return the defaults of rows that these options set; None for an option that is not given."""
    return {
        "image": _source(image),
        "mask_image": _source(mask_image),
        "strength": strength,
        "resize": resize,
        "mask_blur": mask_blur,
        "loras": _values(lora),
        "controlnet": _values(controlnet),
        # a file's name may have a comma
        "control_image": [*map(_source, control_image)] if control_image else None,
        "controlnet_conditioning_scale": _values(controlnet_conditioning_scale),
        "control_guidance_start": _values(control_guidance_start),
        "control_guidance_end": _values(control_guidance_end),
        "control_preprocessor": _values(control_preprocessor),
        "ip_adapter": _values(ip_adapter),
        "ip_adapter_image": [*map(_source, ip_adapter_image)] if ip_adapter_image else None,
        "ip_adapter_scale": _values(ip_adapter_scale),
        "hires_scale": hires_scale,
        "hires_steps": hires_steps,
        "hires_strength": hires_strength,
        "hires_upscaler": hires_upscaler,
        "refiner": refiner,
        "refiner_start": refiner_start,
        "safety": safety,
    }


def _values(given: list[str] | None) -> list[str] | None:
    """Return the values of a repeatable option, each of which may be several between commas."""
    return [part.strip() for text in given for part in text.split(",")] if given else None


def _source(source: str | None) -> str | None:
    """Return a source with an absolute path: those of a prompt file begin at its folder, which may be another one."""
    if not source or _ADDRESS.match(source):
        return source
    before, prefix, path = source.rpartition(TRANSPARENT)
    return f"{before}{prefix}{Path(path).absolute()}"

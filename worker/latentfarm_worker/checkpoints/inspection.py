"""What a model is, from its configs and the headers of its files: no weights are read, and no torch is imported."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentfarm.errors import ModelError
from latentfarm.model_source import ModelSource, parse_source
from latentfarm_worker.checkpoints.base import Checkpoint
from latentfarm_worker.checkpoints.digest_cache import DigestCache
from latentfarm_worker.checkpoints.folder import FolderCheckpoint
from latentfarm_worker.checkpoints.layout import FAMILY_NAMES
from latentfarm_worker.checkpoints.opening import locate, open_single_file, vae_path
from latentfarm_worker.checkpoints.other_vae import OtherVae
from latentfarm_worker.checkpoints.published import PIPELINES, SERVED
from latentfarm_worker.checkpoints.single_file import SingleFileCheckpoint
from latentfarm_worker.checkpoints.tensor_file import TensorInfo

#: bytes of a number by the dtypes that a worker loads a model in
_LOADED: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
_DTYPE_NAMES: Mapping[str, str] = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}  # fmt: skip
#: pixels that one token of a transformer covers, by side, as multiples of the VAE's factor
_PATCH = 2
_NOT_WEIGHTS = ("scheduler", "tokenizer", "feature_extractor", "safety_checker", "image_encoder")


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Attributes:
        part: its sub-folder.
        kind: its class in diffusers or transformers.
        parameters: numbers in its tensors.
        size: bytes of its tensors.
        dtypes: dtypes of its tensors, the most frequent first.
        place: the file or folder that it is in.
    """

    part: str
    kind: str
    parameters: int
    size: int
    dtypes: tuple[str, ...]
    place: str


@dataclass(frozen=True)
class Inspection:
    """The output of ``latentfarm model inspect``.

    Attributes:
        source: the source as the user wrote it.
        family: its name for people.
        pipeline: the diffusers pipeline that renders the same images.
        served: whether a worker renders it.
        licence: as the files state it; None: they state none.
        native_width: pixels of an image without a size of its own; None if a config is missing. So is the height.
        pixel_multiple: width and height are multiples of it.
        scheduler: class of the noise schedule.
        prediction: what the model predicts: epsilon, v_prediction, sample or flow.
        guidance: ``classifier-free``: two rows an image; ``embedded``: one row, the scale is an input; ``none``.
        parts: the parts with weights.
        parameters, size: of all parts, in numbers and bytes.
        memory: bytes that the weights take by the dtype of ``--dtype``.
        missing: what a worker would not find, with the cure.
        digest: the sha256 over the weights, if it was requested.
    """

    source: str
    family: str
    pipeline: str
    served: bool
    licence: str | None
    native_width: int | None
    native_height: int | None
    pixel_multiple: int | None
    scheduler: str | None
    prediction: str | None
    guidance: str
    parts: tuple[Part, ...]
    parameters: int
    size: int
    memory: Mapping[str, int]
    missing: tuple[str, ...]
    digest: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def inspect(source: str | Path, *, digest: bool = False, cache: Path | None = None) -> Inspection:
    """Return what a model is. Nothing is downloaded.

    Args:
        source: as ``model_source.ModelSource`` is written.
        digest: hash the weights too, which takes seconds for each 10 GB or more.
        cache: folder that keeps digests.

    Raises:
        ModelError: there is no such model on this machine, or its files are damaged or of no model.
    """
    parsed = ModelSource(str(source)) if isinstance(source, Path) else parse_source(source)
    digests = DigestCache(cache)
    path = locate(parsed, local_only=True)
    model: FolderCheckpoint | SingleFileCheckpoint
    if path.is_dir():
        model = FolderCheckpoint(path, name=str(source), digests=digests, variant=parsed.variant)
    else:
        model = open_single_file(parsed, path, digests, local_only=True)
    vae = OtherVae(model, vae_path(parsed.vae, local_only=True), digests=digests) if parsed.vae else None
    missing: list[str] = []
    parts = tuple(_parts(model, vae, missing))
    checkpoint: Checkpoint = vae or model
    configs = {part: _config(checkpoint, part, missing) for part in (_denoiser(model), "vae", "scheduler")}
    if isinstance(model, SingleFileCheckpoint):
        try:
            model.require_base()
        except ModelError as error:
            # it names all that a base would bring
            missing = [str(error)]
    return _described(str(source), model, parts, configs, dict.fromkeys(missing), _digest(checkpoint, parts, on=digest))


def _described(
    source: str,
    model: FolderCheckpoint | SingleFileCheckpoint,
    parts: tuple[Part, ...],
    configs: Mapping[str, Mapping[str, Any]],
    missing: Iterable[str],
    digest: str | None,
) -> Inspection:
    denoiser, vae, scheduler = configs[_denoiser(model)], configs["vae"], configs["scheduler"]
    pipeline = str(model.index.get("_class_name"))
    parameters = sum(part.parameters for part in parts)
    factor = 2 ** (len(vae["block_out_channels"]) - 1) if "block_out_channels" in vae else None
    width, height = _native_size(denoiser, vae, factor)
    is_unet = _denoiser(model) == "unet"
    return Inspection(
        source=source,
        family=_family(model, denoiser),
        pipeline=pipeline,
        served=pipeline in SERVED,
        licence=model.licence,
        native_width=width,
        native_height=height,
        pixel_multiple=None if factor is None else factor * (1 if is_unet else _PATCH),
        scheduler=scheduler.get("_class_name"),
        prediction=_prediction(scheduler),
        guidance=_guidance(model, denoiser),
        parts=parts,
        parameters=parameters,
        size=sum(part.size for part in parts),
        memory={dtype: parameters * size for dtype, size in _LOADED.items()},
        missing=tuple(missing),
        digest=digest,
    )


def _denoiser(model: FolderCheckpoint | SingleFileCheckpoint) -> str:
    if isinstance(model, SingleFileCheckpoint):
        return model.layout.denoiser
    return "unet" if model.has("unet") else "transformer"


def _parts(model: FolderCheckpoint | SingleFileCheckpoint, vae: OtherVae | None, missing: list[str]) -> Iterable[Part]:
    for part in _names_of_parts(model):
        holder: FolderCheckpoint | SingleFileCheckpoint | OtherVae = vae if vae and part == "vae" else model
        try:
            tensors = holder.tensors(part)
        except ModelError as error:
            missing.append(str(error))
            continue
        dtypes = Counter[str]()
        for tensor in tensors:
            dtypes[_DTYPE_NAMES.get(tensor.dtype, tensor.dtype)] += tensor.parameters
        yield Part(
            part,
            _kind(model, part),
            _total(tensors),
            sum(tensor.size for tensor in tensors),
            tuple(name for name, _ in dtypes.most_common()),
            str(holder.place(part)),
        )


def _names_of_parts(model: FolderCheckpoint | SingleFileCheckpoint) -> list[str]:
    named = [name for name in model.index if model.has(name) and not name.startswith(_NOT_WEIGHTS)]
    of_file = [] if isinstance(model, FolderCheckpoint) else [*model.layout.parts, *model.required()]
    first = _denoiser(model)
    return sorted({*named, *of_file}, key=lambda part: (part != first, part != "vae", part))


def _kind(model: FolderCheckpoint | SingleFileCheckpoint, part: str) -> str:
    entry = model.index.get(part)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] else ""


def _total(tensors: Iterable[TensorInfo]) -> int:
    return sum(tensor.parameters for tensor in tensors)


def _config(checkpoint: Checkpoint, part: str, missing: list[str]) -> dict[str, Any]:
    try:
        return checkpoint.config(part)
    except ModelError as error:
        missing.append(str(error))
        return {}


def _digest(checkpoint: Checkpoint, parts: Iterable[Part], *, on: bool) -> str | None:
    return checkpoint.digest(part.part for part in parts) if on else None


def _family(model: FolderCheckpoint | SingleFileCheckpoint, denoiser: Mapping[str, Any]) -> str:
    if isinstance(model, SingleFileCheckpoint):
        return FAMILY_NAMES[model.layout.family]
    pipeline = str(model.index.get("_class_name"))
    families = [family for family, name in PIPELINES.items() if name == pipeline]
    if families == ["sd1", "sd2"]:
        return FAMILY_NAMES["sd2" if denoiser.get("use_linear_projection") else "sd1"]
    return FAMILY_NAMES[families[0]] if families else pipeline


def _native_size(
    denoiser: Mapping[str, Any], vae: Mapping[str, Any], factor: int | None
) -> tuple[int | None, int | None]:
    size = denoiser.get("sample_size")
    if size is not None and factor is not None:
        height, width = (size, size) if isinstance(size, int) else size
        return width * factor, height * factor
    side = vae.get("sample_size")
    return side, side


def _prediction(scheduler: Mapping[str, Any]) -> str | None:
    name = str(scheduler.get("_class_name", ""))
    if name.startswith("FlowMatch") or scheduler.get("use_flow_sigmas"):
        return "flow"
    return str(scheduler.get("prediction_type", "epsilon")) if name else None


def _guidance(model: FolderCheckpoint | SingleFileCheckpoint, denoiser: Mapping[str, Any]) -> str:
    if denoiser.get("guidance_embeds") or denoiser.get("time_cond_proj_dim"):
        return "embedded"
    pipeline = model.index.get("_class_name")
    # schnell; a FLUX.1 with a VAE of 4 channels, as the bundled one, is not distilled
    schnell = pipeline == PIPELINES["flux"] and denoiser.get("in_channels", 64) == 64
    return "none" if schnell or model.index.get("is_distilled") else "classifier-free"


def text_of(found: Inspection) -> list[str]:
    """Return lines for people."""
    size = f"{found.native_width} x {found.native_height}" if found.native_width else "unknown"
    multiple = f", sides are multiples of {found.pixel_multiple}" if found.pixel_multiple else ""
    lines = [
        f"family     {found.family} ({found.pipeline})",
        f"rendered   {'yes' if found.served else 'no: latentfarm has no family for this pipeline'}",
        f"licence    {found.licence or 'the files state none'}",
        f"image      {size} pixels{multiple}",
        f"schedule   {found.scheduler or 'unknown'}, predicts {found.prediction or 'unknown'}",
        f"guidance   {_GUIDANCE[found.guidance]}",
        f"weights    {_count(found.parameters)} parameters, {_bytes(found.size)}",
        f"memory     {', '.join(f'{_bytes(size)} in {dtype}' for dtype, size in found.memory.items())}",
    ]
    width = max((len(part.part) for part in found.parts), default=0)
    for part in found.parts:
        described = f"{_count(part.parameters):>6}  {_bytes(part.size):>8}  {', '.join(part.dtypes[:3])}"
        lines.append(f"  {part.part:<{width}}  {described}  {part.kind}".rstrip())
    if found.digest:
        lines.append(f"digest     {found.digest}")
    return [*lines, *(f"missing    {each}" for each in found.missing)]


_GUIDANCE: Mapping[str, str] = {
    "classifier-free": "classifier-free: negative prompts work, and a guided image is two rows",
    "embedded": "embedded: an image is one row, without a negative prompt",
    "none": "none: the model is distilled, an image is one row",
}


def _count(number: int) -> str:
    return _scaled(number, 1000, ("", " k", " M", " G"))


def _bytes(number: int) -> str:
    return _scaled(number, 1000, (" B", " kB", " MB", " GB", " TB"))


def _scaled(number: int, base: int, units: tuple[str, ...]) -> str:
    at = min(int(math.log(number, base)) if number else 0, len(units) - 1)
    scaled = number / base**at
    return f"{scaled:.3g}{units[at]}" if scaled < base else f"{scaled:.0f}{units[at]}"

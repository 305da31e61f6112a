"""Read an IP-Adapter: its file in the layout of h94/IP-Adapter, and the CLIP image encoder beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latentfarm.adapter_kind import AdapterKind
from latentfarm.errors import JobError, ModelError
from latentfarm_worker.adapters.kinds import kind_of_tensors
from latentfarm_worker.checkpoints.folder import weight_files
from latentfarm_worker.checkpoints.tensor_file import read_tensor_file
from latentfarm_worker.checkpoints.weights import read_weights

#: the folder of the encoder, beside the file
ENCODER = "image_encoder"
_PROJECTION, _ATTENTION = "image_proj.", "ip_adapter."
#: names of tensors of adapters that read images; those without one read the embedding of a face
_OF_IMAGES = ("image_proj.proj.weight", "image_proj.proj.3.weight", "image_proj.latents")


class AdapterWeights(torch.nn.Module):
    """One IP-Adapter.

    Args:
        projection: makes tokens of an image's embedding, a module of diffusers.
        keys, values: of each cross-attention of the U-Net, the weights (inner, D) of its keys and values of the tokens.

    Attributes:
        reads_states: whether it reads the encoder's penultimate hidden states instead of its embedding.
    """

    def __init__(self, projection: Any, keys: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
        from diffusers.models.embeddings import ImageProjection

        super().__init__()
        self.projection = projection
        self.places = {name: number for number, name in enumerate(keys)}
        self.keys = torch.nn.ParameterList([*keys.values()])
        self.values = torch.nn.ParameterList([*values.values()])
        self.reads_states = not isinstance(projection, ImageProjection)


def files_of(alias: str, path: Path) -> tuple[Path, Path]:
    """Return the file of an adapter, and the folder of its image encoder.

    Raises:
        JobError: code ``adapter_invalid``: there is no encoder.
    """
    file = path
    if path.is_dir():
        found = (each for each in sorted(path.glob("*.safetensors")))
        file = next(each for each in found if kind_of_tensors(read_tensor_file(each).tensors) is AdapterKind.IP_ADAPTER)
    encoder = file.parent / ENCODER
    if not (encoder / "config.json").is_file():
        raise JobError(
            "adapter_invalid", f"ip_adapter {alias!r}: there is no image encoder in {encoder}; put its folder there"
        )
    return file, encoder


def load_adapter(alias: str, file: Path, unet: Any, dtype: torch.dtype) -> AdapterWeights:
    """Return an adapter of a U-Net on the host.

    Raises:
        JobError: code ``adapter_mismatch`` for another base model, ``adapter_invalid``.
        ModelError: the file is damaged.
    """
    header = read_tensor_file(file)
    if not any(name in header.tensors for name in _OF_IMAGES):
        raise JobError(
            "adapter_invalid", f"ip_adapter {alias!r} reads the embedding of a face; use one that reads images"
        )
    attention = {name: tensor.to(dtype) for name, tensor in read_weights(header, _ATTENTION).items()}
    keys, values = {}, {}
    layers = cross_attentions(unet)
    for number, (name, layer) in enumerate(layers.items()):
        # the authors count self-attentions too
        key, value = (attention.get(f"{2 * number + 1}.{part}.weight") for part in ("to_k_ip", "to_v_ip"))
        wanted = layer.to_k.out_features, layer.to_k.in_features
        if key is None or value is None or tuple(key.shape) != wanted or tuple(value.shape) != wanted:
            found = None if key is None else tuple(key.shape)
            raise _mismatch(alias, f"layer {2 * number + 1} has the shape {found}, that of the model {wanted}")
        keys[name], values[name] = key, value
    if len(attention) != 2 * len(layers):
        raise _mismatch(alias, f"it has {len(attention) // 2} layers, and the model {len(layers)}")
    adapter = AdapterWeights(_projection(alias, read_weights(header, _PROJECTION)), keys, values).to(dtype)
    return adapter.eval().requires_grad_(requires_grad=False)


def cross_attentions(unet: Any) -> dict[str, Any]:
    """Return the cross-attentions of a U-Net by name, in the order of the authors."""
    names = (name.removesuffix(".processor") for name in unet.attn_processors)
    return {name: unet.get_submodule(name) for name in names if name.endswith("attn2")}


def load_encoder(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """Return a CLIP image encoder on the host.

    Raises:
        ModelError: its weights are missing or damaged.
        OSError, ValueError: its config cannot be read.
    """
    from transformers import CLIPVisionModelWithProjection

    for path in weight_files(folder):
        # its errors have a place and a cure; those of the library have not
        read_tensor_file(path)
    encoder: Any = CLIPVisionModelWithProjection.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True
    )
    ready: torch.nn.Module = encoder.eval().requires_grad_(requires_grad=False)
    return ready


def _projection(alias: str, tensors: Mapping[str, torch.Tensor]) -> Any:
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin

    try:
        # diffusers has no other name for it
        return UNet2DConditionLoadersMixin()._convert_ip_adapter_image_proj_to_diffusers(  # noqa: SLF001
            dict(tensors), low_cpu_mem_usage=False
        )
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise ModelError(f"ip_adapter {alias!r}: its projection is not one that diffusers reads: {error}") from error


def _mismatch(alias: str, why: str) -> JobError:
    return JobError("adapter_mismatch", f"ip_adapter {alias!r} is for another base model: {why}; use one of this base")

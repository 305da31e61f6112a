"""The shipped adapters fit mini, and none is larger than a mebibyte."""

from pathlib import Path
from typing import NoReturn

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file

from latentfarm.adapter_kind import AdapterKind
from latentfarm_worker.adapters.catalogue import open_catalogue
from latentfarm_worker.mini import ADAPTERS_DIR, MODEL_DIR
from mini_training.export import folder_bytes

pytestmark = pytest.mark.unit


def _size(path: Path) -> int:
    return folder_bytes(path) if path.is_dir() else path.stat().st_size


def test_the_adapters_are_known_by_kind_and_small(tmp_path: Path) -> None:
    def no_store(bucket: str) -> NoReturn:
        raise AssertionError(bucket)

    known = open_catalogue("", cache=tmp_path, max_bytes=1, open_store=no_store, bundled=ADAPTERS_DIR)
    assert known.names(AdapterKind.LORA) == ("outlined", "striped")
    assert known.names(AdapterKind.CONTROLNET) == ("edges",)
    assert known.names(AdapterKind.EMBEDDING) == ("nested",)
    for kind in (AdapterKind.LORA, AdapterKind.CONTROLNET, AdapterKind.EMBEDDING):
        for name in known.names(kind):
            assert _size(known.get(kind, name).path) < 2**20


@pytest.mark.parametrize("name", ["outlined", "striped"])
def test_a_lora_changes_layers_of_the_denoiser(name: str) -> None:
    unet = UNet2DConditionModel.from_pretrained(MODEL_DIR / "unet", torch_dtype=torch.float32)
    tensors = load_file(ADAPTERS_DIR / f"{name}.safetensors")
    layers = {key.removeprefix("unet.").rsplit(".lora_", 1)[0] for key in tensors}
    assert len(layers) == 40
    for layer in layers:
        change = tensors[f"unet.{layer}.lora_B.weight"].float() @ tensors[f"unet.{layer}.lora_A.weight"].float()
        weight = unet.get_submodule(layer).weight
        assert change.shape == weight.shape
        assert 0 < change.norm() < 3 * weight.norm()


def test_the_net_of_edges_has_the_channels_of_the_denoiser() -> None:
    unet = UNet2DConditionModel.load_config(MODEL_DIR / "unet")
    net = ControlNetModel.from_pretrained(ADAPTERS_DIR / "edges", torch_dtype=torch.float32)
    assert list(net.config.block_out_channels) == unet["block_out_channels"]
    assert net.config.cross_attention_dim == unet["cross_attention_dim"]
    assert all(value.isfinite().all() for value in net.parameters())


def test_the_word_has_vectors_of_the_text_encoders_width() -> None:
    [(word, vectors)] = load_file(ADAPTERS_DIR / "nested.safetensors").items()
    assert word == "<nested>"
    assert vectors.shape == (8, 112)

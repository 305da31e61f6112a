"""Weights in float8 and GGUF load as the numbers that they stand for; other quantizations are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.support.original_layouts import single_file_tensors, write_single_file
from tests.support.tiny import make_tiny

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints import open_checkpoint
from latentfarm_worker.checkpoints.headers import read_header
from latentfarm_worker.checkpoints.weights import read_weights
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "flux", kind="flux")


def transformer(source: str) -> Tensors:
    import diffusers

    checkpoint = open_checkpoint(source)
    module = checkpoint.load_model("transformer", diffusers.FluxTransformer2DModel, torch.float32)
    return dict(module.state_dict())


def of_folder(flux: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    tensors = load_file(flux / "transformer" / "diffusion_pytorch_model.safetensors")
    return {name: change(tensor) for name, tensor in tensors.items()}


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_in_float8_are_cast_at_load(flux: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    file = write_single_file(flux, tmp_path / "fp8.safetensors", "flux", comfyui=True, dtype=dtype)
    assert equal(transformer(f"{file},base={flux}"), of_folder(flux, lambda each: each.to(dtype).float()))


@pytest.mark.parametrize("suffix", [".scale_weight", ".weight_scale"])
def test_scaled_weights_in_float8_are_multiplied_by_their_scale(flux: Path, tmp_path: Path, suffix: str) -> None:
    tensors: Tensors = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for name, tensor in single_file_tensors(flux, "flux").items():
        tensors[name] = tensor
        if tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[name.removesuffix(".weight") + suffix] = scale
            tensors[name.removesuffix(".weight") + ".scale_input"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "scaled.safetensors")
    found, exact = transformer(f"{tmp_path / 'scaled.safetensors'},base={flux}"), of_folder(flux, lambda each: each)
    for name, tensor in exact.items():
        # float8 keeps three bits after the first
        error = (found[name] - tensor).abs().max() / tensor.abs().max()
        assert error < (1 / 16 if tensor.ndim == 2 else 1e-9), name


def test_other_quantizations_are_refused_with_the_cure(flux: Path, tmp_path: Path) -> None:
    tensors = single_file_tensors(flux, "flux")
    name = "double_blocks.0.img_attn.qkv.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, tmp_path / "int8.safetensors")
    with pytest.raises(ModelError, match=rf"{name} is quantized as I8, .* use a file in float16"):
        load_family(f"{tmp_path / 'int8.safetensors'},base={flux}", dtype=torch.float32, device=torch.device("cpu"))


def write_gguf(tensors: Tensors, path: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """Write weights as ComfyUI's converter does: matrices quantized, the rest in float32."""
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_license("apache-2.0")
    for name, tensor in tensors.items():
        numbers = tensor.float().numpy()
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16"])
def test_weights_in_gguf_load_as_their_quantization_rounds_them(flux: Path, tmp_path: Path, kind: str) -> None:
    quantization = gguf.GGMLQuantizationType[kind]
    tensors = single_file_tensors(flux, "flux")
    file = write_gguf(tensors, tmp_path / "flux.gguf", quantization)

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim != 2 or tensor.shape[1] % 32:
            return tensor
        numbers = gguf.quants.quantize(tensor.numpy(), quantization)
        return torch.from_numpy(gguf.quants.dequantize(numbers, quantization).copy())

    # blocks are within rows, so that rows of joined matrices are rounded as those of the parts
    assert equal(transformer(f"{file},base={flux}"), of_folder(flux, rounded))
    header = read_header(file)
    assert header.licence == "apache-2.0"
    name = "double_blocks.0.img_attn.qkv.weight"
    assert (header.tensors[name].dtype, header.tensors[name].shape) == (kind, tuple(tensors[name].shape))


@given(data=st.data())
def test_a_damaged_gguf_file_gives_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    valid = write_gguf({"a.weight": torch.ones(2, 32), "b.bias": torch.ones(3)}, folder / "a.gguf",
                       gguf.GGMLQuantizationType.Q8_0).read_bytes()  # fmt: skip
    changed = bytearray(valid[: data.draw(st.integers(0, len(valid)), label="end")])
    for _ in range(data.draw(st.integers(0, 3))):
        if changed:
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (folder / "b.gguf").write_bytes(changed)
    try:
        file = read_header(folder / "b.gguf")
        read_weights(file, "")
    except ModelError as error:
        text = str(error)
    else:
        text = ""
    assert "\n" not in text


def test_without_the_package_gguf_the_error_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"needs the package gguf: pip install 'latentfarm\[gguf\]'"):
        read_header(tmp_path / "a.gguf")

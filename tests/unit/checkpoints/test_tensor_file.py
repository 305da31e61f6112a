"""A damaged file, or something else with a model's name, gives one line with the cure; never a traceback."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from tests.support.tiny import make_tiny

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints import open_checkpoint
from latentfarm_worker.checkpoints.headers import read_header
from latentfarm_worker.checkpoints.layout import recognize
from latentfarm_worker.checkpoints.tensor_file import TensorFile, read_tensor_file
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

TENSORS = {"a.weight": torch.ones(2, 3), "b.bias": torch.zeros(5, dtype=torch.float16)}
VALID = save(TENSORS, metadata={"modelspec.license": "openrail++", "modelspec.title": "x"})


def written(folder: Path, content: bytes, name: str = "model.safetensors") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def message(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_checkpoint(str(path))
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def test_a_header_has_names_shapes_dtypes_and_the_licence(tmp_path: Path) -> None:
    file = read_tensor_file(written(tmp_path, VALID))
    assert {name: (each.dtype, each.shape, each.size) for name, each in file.tensors.items()} == {
        "a.weight": ("F32", (2, 3), 24),
        "b.bias": ("F16", (5,), 10),
    }
    assert file.licence == "openrail++"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty; download it again"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, not safetensors; download it again"),
        (b"\n  <html>" + bytes(90), "is a web page"),
        (b"PK\x03\x04" + bytes(90), "is a zip file, as torch.save writes, not safetensors; pickles run code"),
        (b"\x80\x02}q\x00." + bytes(90), "is a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of git LFS"),
        (b"\x1f\x8b" + bytes(90), "is a gzip file"),
        (b"abc", "is not a safetensors file"),
        (bytes(90), "is not a safetensors file"),
        (b'{"error": "Access to this model is restricted"}', "is not a safetensors file"),
        (VALID[:-1], "is damaged: 1 bytes are missing at its end; download it again"),
        (VALID[:20], "is damaged: its header has"),
        (VALID + b"x", "is damaged: 1 bytes too many are at its end"),
        ((2).to_bytes(8, "little") + b"{}", "holds no tensor"),
    ],
)
def test_what_is_no_model_gives_one_line_with_the_cure(tmp_path: Path, content: bytes, problem: str) -> None:
    assert problem in message(written(tmp_path, content))


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.pth"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    assert "pickles run code; use the model's .safetensors" in message(written(tmp_path, VALID, name))


@pytest.mark.parametrize(
    "entry",
    [
        [],
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "COMPLEX", "shape": [2], "data_offsets": [0, 8]},
    ],
)
def test_a_header_that_does_not_describe_tensors_gives_one_line(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"a": entry}).encode()
    text = message(written(tmp_path, len(header).to_bytes(8, "little") + header + bytes(8)))
    assert "damaged" in text or "unknown here" in text


@given(end=st.integers(0, len(VALID) - 1))
def test_a_truncated_file_gives_one_line_wherever_it_ends(tmp_path_factory: pytest.TempPathFactory, end: int) -> None:
    message(written(tmp_path_factory.getbasetemp(), VALID[:end]))


@given(data=st.data())
def test_a_changed_header_gives_one_line_or_other_tensors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    length = 8 + int.from_bytes(VALID[:8], "little")
    changed = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path_factory.getbasetemp(), bytes(changed))
    with suppress(ModelError):
        assert isinstance(read_header(path), TensorFile)


@given(names=st.lists(st.sampled_from(["a", "lora_up.weight", "double_blocks.0.img_attn.norm.x", "joint_blocks.0.x",
                                       "model.diffusion_model.input_blocks.0.0.weight", "layers.0.attention.qkv.weight",
                                       "conditioner.embedders.1.x", "img_in.weight", "out.2.weight"]), min_size=1),
       shapes=st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=9, max_size=9))  # fmt: skip
def test_any_names_and_shapes_give_a_layout_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], shapes: list[list[int]]
) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in zip(dict.fromkeys(names), shapes, strict=False)}
    path = written(tmp_path_factory.getbasetemp(), save(tensors))
    with pytest.raises(ModelError) as caught:
        open_checkpoint(f"{path},base={path.parent}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["lora_unet_down_blocks_0.lora_up.weight"], "is a LoRA, which changes a model; name the model itself"),
        (["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], "is a LoRA"),
        (["transformer.single_transformer_blocks.0.attn.to_q.lora.up.weight"], "is a LoRA"),
        (["control_model.input_hint_block.0.weight"], "is a ControlNet"),
        (["emb_params"], "is a textual inversion"),
        (["down_blocks.0.resnets.0.conv1.weight"], "is the denoising model of a diffusers folder; name the folder"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "is a VAE; name the model, and this file with --vae"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "is a text encoder"),
        (["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"], "is a text encoder"),
        (["distilled_guidance_layer.in_proj.bias", "double_blocks.0.img_attn.norm.key_norm.scale"], "is a Chroma"),
        (["patch_embedding.weight", "blocks.0.cross_attn.k.weight"], "is a model of no family that is known here"),
        (["conditioner.embedders.0.model.ln_final.weight"], "of no family that is known"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path: Path, names: list[str], problem: str) -> None:
    text = message(written(tmp_path, save({name: torch.zeros(1) for name in names})))
    assert problem in text


def channels(prefix: str, first: str, last: str, takes: int, gives: int, *others: str) -> dict[str, torch.Tensor]:
    return {prefix + first: torch.zeros(1, takes), prefix + last: torch.zeros(gives, 1)} | {
        prefix + name: torch.zeros(1) for name in others
    }


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (channels("model.diffusion_model.", "input_blocks.0.0.weight", "out.2.weight", 9, 4), "takes 9 channels and"),
        (channels("model.diffusion_model.", "input_blocks.0.0.weight", "out.2.weight", 8, 4), "takes 8 channels and"),
        (
            channels("", "img_in.weight", "final_layer.linear.weight", 384, 64, "double_blocks.0.img_attn.norm.x"),
            "takes 384 channels and gives 64: it is not a text-to-image model",
        ),
        (
            channels("model.diffusion_model.", "input_blocks.0.0.weight", "out.2.weight", 4, 4)
            | {"conditioner.embedders.0.model.ln_final.weight": torch.zeros(1)},
            "is the refiner of Stable Diffusion XL",
        ),
    ],
)
def test_models_that_edit_or_refine_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], problem: str) -> None:
    path = written(tmp_path, save(tensors))
    with pytest.raises(ModelError, match=problem):
        recognize(read_tensor_file(path))


def test_damaged_weights_in_a_folder_give_one_line(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:-1], content[:1000], b"<html>", b""):
        weights.write_bytes(damaged)
        with pytest.raises(ModelError, match="download it again") as caught:
            load_family(folder, dtype=torch.float32, device=torch.device("cpu"))
        assert "\n" not in str(caught.value)

"""FP8 is refused with the cure where it cannot run, and emulated on the CPU it changes images little."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import make, pixels, run
from tests.support.tiny import Kind, make_tiny

from latentfarm.errors import ModelError
from latentfarm.settings import Settings
from latentfarm_worker.build import pick_dtype
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.mini import MODEL_DIR
from latentfarm_worker.models import Memory, load_family
from latentfarm_worker.models.quantization import _suits_fp8, layers_of_blocks, quantize_to_fp8

pytestmark = [
    pytest.mark.unit,
    # torchao has invalid escape sequences in its docstrings
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning"),
]

CPU = torch.device("cpu")
needs_torchao = pytest.mark.skipif(not find_spec("torchao"), reason="torchao is not installed")
PROMPTS = ["a red circle", "a blue square on green", "two yellow triangles", "a large purple star"]


def render(quantization: str, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    family = load_family(MODEL_DIR, dtype=dtype, device=CPU, memory=Memory(quantization))
    engine = Engine(family, slots=len(PROMPTS))
    for index, prompt in enumerate(PROMPTS):
        engine.admit(make(index, prompt=prompt, num_inference_steps=20))
    done = run(engine)
    images = [done[index] for index in range(len(PROMPTS))]
    assert all(isinstance(image, Rendered) for image in images)
    return torch.stack([image.pixels for image in images if isinstance(image, Rendered)]).float()


def psnr(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return 10 * torch.log10(255**2 / (images - others).square().flatten(1).mean(dim=1))


def test_fp8_takes_bfloat16_unless_a_dtype_is_set() -> None:
    assert pick_dtype("auto", CPU, "fp8") == torch.bfloat16
    assert Settings().quantization == "none"


def test_a_quantization_that_cannot_run_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(16, 16)
    with pytest.raises(ModelError, match="fp8 needs the dtype bfloat16, not float16; write --dtype bfloat16"):
        quantize_to_fp8(layer, torch.float16)
    # None lets an import of it fail
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ModelError, match=r"needs torchao, .*pip install 'latentfarm\[fp8\]'"):
        quantize_to_fp8(layer, torch.bfloat16)
    with pytest.raises(ModelError, match="quantization 'int4' is unknown; write none, fp8 or nf4"):
        load_family(MODEL_DIR, dtype=torch.bfloat16, device=CPU, memory=Memory("int4"))


@needs_torchao
def test_a_device_without_fp8_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not run on this device: .*8\.9.* LATENTFARM_QUANTIZATION=none"):
        load_family(make_tiny(tmp_path / "tiny"), dtype=torch.bfloat16, device=CPU, memory=Memory("fp8"))


@pytest.mark.parametrize("kind", ["sd3", "flux", "flux2", "zimage"])
def test_the_products_of_tokens_in_a_transformers_blocks_are_in_fp8_and_no_others(kind: Kind, tmp_path: Path) -> None:
    family: Any = load_family(make_tiny(tmp_path / kind, kind=kind), dtype=torch.bfloat16, device=CPU)
    model = family.denoising_model
    blocks = layers_of_blocks(model)
    chosen = {name for name, layer in model.named_modules() if name in blocks and _suits_fp8(layer, name)}
    assert [name for name in chosen if name.endswith(("to_q", "to_qkv_mlp_proj"))]
    # the tiny Z-Image's hidden layers are no multiple of 16
    assert kind == "zimage" or [name for name in chosen if "ff" in name or "mlp" in name]
    outside = ("embed", "time", "context_embedder", "final", "adaLN", "norm_out", "modulation", "norm1.linear")
    assert not [name for name in chosen if any(part in name for part in outside)]


@needs_torchao
@pytest.mark.parametrize("kind", ["sd3", "flux", "flux2", "zimage"])
def test_a_transformers_image_has_the_same_bytes_in_any_company_in_fp8(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch multiplies FP8 on a CPU, too, only slowly
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda _: None)
    folder = make_tiny(tmp_path / kind, kind=kind)
    family: Any = load_family(folder, dtype=torch.bfloat16, device=CPU, memory=Memory("fp8"))
    found = []
    for others in (0, 1, 3):
        engine = Engine(family, slots=2)
        for index in range(others + 1):
            engine.admit(make(index, num_inference_steps=2 + index))
        found.append(pixels(run(engine)[0]))
    assert found[0] == found[1] == found[2]
    plain = Engine(load_family(folder, dtype=torch.bfloat16, device=CPU), slots=2)
    plain.admit(make(0, num_inference_steps=2))
    assert pixels(run(plain)[0]) != found[0]


@pytest.mark.slow
@needs_torchao
def test_fp8_changes_images_of_mini_little_and_no_row_depends_on_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch multiplies FP8 on a CPU, too, only slowly
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda _: None)
    family: Any = load_family(MODEL_DIR, dtype=torch.bfloat16, device=CPU, memory=Memory("fp8"))
    assert family.quantization == "fp8"
    layer = family.unet.get_submodule("down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2")
    rows = torch.randn(4, 16, layer.in_features, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert all(torch.equal(layer(rows)[at], layer(rows[at : at + 1] * 1)[0]) for at in range(4))
    differences = psnr(render("fp8"), render("none"))
    assert differences.median() > 30, differences

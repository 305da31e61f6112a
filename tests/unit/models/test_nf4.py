"""NF4 has the bits of bitsandbytes, a quarter of the bytes, and no image depends on its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.engines import make, pixels, run
from tests.support.tiny import Kind, make_tiny

from latentfarm.errors import ModelError
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import Memory, load_family
from latentfarm_worker.models.nf4 import LEVELS, Nf4Linear, level_pairs, pack, unpack
from latentfarm_worker.models.quantization import layers_of_blocks, quantize_to_nf4

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
KINDS: list[Kind] = ["sd1", "sdxl", "sd3", "flux", "flux2", "zimage"]


def test_a_packed_weight_has_the_bits_of_bitsandbytes() -> None:
    # bitsandbytes 0.50.2: quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    weight = ((torch.arange(192) * 37 % 101 - 50) / 64.0).pow(3).view(3, 64)
    weight[2] = 0
    packed, scales = pack(weight)
    assert bytes(packed.tolist()).hex() == (
        "07827b57e6717937c57e7817a47d67f7827a47d6707937b57e6817937c67f782"
        "7a47d6707927b57e6817937c57f7817a47d6707827b57e6717937c57e7817a47" + 32 * "77"
    )
    assert scales.tolist() == [0.476837158203125, 0.476837158203125, 0.0]


def test_each_number_becomes_the_nearest_level_of_its_block() -> None:
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    packed, scales = pack(weight)
    restored = unpack(packed, scales, level_pairs(CPU)).view_as(weight)
    distances = (weight[..., None] / scales[:, None, None] - torch.tensor(LEVELS)).abs()
    nearest = torch.tensor(LEVELS)[distances.argmin(dim=-1)] * scales[:, None]
    assert torch.equal(restored, nearest)
    assert (restored - weight).norm() / weight.norm() < 0.1


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1.0, 1e30]))
def test_packing_a_restored_weight_changes_nothing(seed: int, size: float) -> None:
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed)) * size
    packed, scales = pack(weight)
    again, same_scales = pack(unpack(packed, scales, level_pairs(CPU)))
    assert torch.equal(packed, again)
    assert torch.equal(scales, same_scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_multiplies_by_its_restored_weight_row_by_row(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(128, 96, dtype=dtype)
    packed = Nf4Linear(layer, CPU)
    rows = torch.randn(8, 5, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        output = packed(rows)
        assert output.dtype == packed.weight.dtype == dtype
        assert torch.equal(output, torch.nn.functional.linear(rows, packed.weight, layer.bias))
        others = torch.cat([rows[:1], torch.randn(7, 5, 128).to(dtype)])
        assert torch.equal(packed(others)[0], output[0])
    held = sum(tensor.nbytes for tensor in (packed.packed, packed.scales))
    assert held == 128 * 96 * 4.5 / 8


def test_a_layer_is_one_graph_for_the_compiler() -> None:
    packed = Nf4Linear(torch.nn.Linear(64, 64), CPU)
    rows = torch.randn(2, 64)
    with torch.inference_mode():
        compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(rows), packed(rows))


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / request.param, kind=request.param)


def packed_layers(model: torch.nn.Module) -> set[str]:
    return {name for name, layer in model.named_modules() if isinstance(layer, Nf4Linear)}


def test_the_blocks_of_each_family_are_packed_and_what_is_around_them_is_not(folder: Path) -> None:
    plain: Any = load_family(folder, dtype=torch.float32, device=CPU)
    family: Any = load_family(folder, dtype=torch.float32, device=CPU, memory=Memory("nf4"))
    linear = {
        name
        for name, layer in plain.denoising_model.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer.weight.numel() % 64 == 0
    }
    packed = packed_layers(family.denoising_model)
    assert family.quantization == "nf4"
    assert packed == linear & layers_of_blocks(plain.denoising_model)
    assert len(packed) >= 8
    assert linear - packed, "embeddings stay"
    assert not [name for name in packed if "embed" in name or name == "proj_out" or "final" in name]
    assert packed_layers(family.vae) == set()
    assert all(packed_layers(family.modules[part]) == set() for part in family.encoder_parts)


def test_images_have_the_same_bytes_in_any_company_and_differ_from_those_of_plain_weights(folder: Path) -> None:
    family: Any = load_family(folder, dtype=torch.float32, device=CPU, memory=Memory("nf4"))
    wanted = make(0, prompt="a cat", num_inference_steps=2)

    def render(family: Any, others: int) -> bytes:
        engine = Engine(family, slots=2)
        for index in range(1, 1 + others):
            engine.admit(make(index, num_inference_steps=1 + index))
        engine.admit(wanted)
        return pixels(run(engine)[0])

    alone = render(family, 0)
    assert render(family, 1) == render(family, 3) == alone
    assert render(load_family(folder, dtype=torch.float32, device=CPU), 0) != alone


@pytest.mark.parametrize(("kind", "language_model"), [("flux", "text_encoder_2"), ("zimage", "text_encoder")])
def test_language_models_are_packed_if_that_is_wished_and_clip_is_not(
    kind: Kind, language_model: str, tmp_path: Path
) -> None:
    folder = make_tiny(tmp_path / kind, kind=kind)
    plain: Any = load_family(folder, dtype=torch.float32, device=CPU)
    family: Any = load_family(folder, dtype=torch.float32, device=CPU, memory=Memory(text_quantization="nf4"))
    assert (family.quantization, family.text_quantization) == ("none", "nf4")
    assert len(packed_layers(family.modules[language_model])) >= 4
    assert not [part for part in family.encoder_parts if part != language_model and packed_layers(family.modules[part])]
    assert family.text_conditions != plain.text_conditions, "the embeddings on disk are others"
    for each in (plain, family):
        each.admitted = Engine(each, slots=1)
        each.admitted.admit(make(0, prompt="a cat"))
    assert pixels(run(family.admitted)[0]) != pixels(run(plain.admitted)[0])


def test_what_cannot_be_packed_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no linear layers that can be packed.*LATENTFARM_QUANTIZATION=none"):
        quantize_to_nf4(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1)), CPU)
    folder = make_tiny(tmp_path / "sd1")
    with pytest.raises(ModelError, match=r"only language models.*LATENTFARM_TEXT_ENCODER_QUANTIZATION=none"):
        load_family(folder, dtype=torch.float32, device=CPU, memory=Memory(text_quantization="nf4"))
    with pytest.raises(ModelError, match="quantization of the text encoders 'fp8' is unknown; write none or nf4"):
        Memory(text_quantization="fp8")
    with pytest.raises(ModelError, match="text encoder 'gpu' is unknown; write auto, resident, offload or cpu"):
        Memory(text_encoder="gpu")  # type: ignore[arg-type]

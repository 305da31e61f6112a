"""Which calls of a compiled model run compiled. The backend compiles nothing, so these tests need no compiler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny import Kind, make_tiny
from torch._dynamo.utils import counters

from latentfarm_worker.models import compiled_blocks, load_family
from latentfarm_worker.models.compiled_blocks import compile_blocks, uncompile_blocks
from latentfarm_worker.text_encoders.prompt import Prompt

pytestmark = [
    pytest.mark.unit,
    # torch warns of its own code
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]


@pytest.fixture(autouse=True)
def no_compiler() -> Iterator[None]:
    with torch.compiler.set_stance("default", force_backend="eager"):
        yield
    torch.compiler.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


class ResnetBlock2D(torch.nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows * 2


def test_a_compiled_model_has_one_program_for_its_native_size_and_texts_of_any_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # few blocks of the U-Net and of the decoder: tracing all of them takes long
    monkeypatch.setattr(compiled_blocks, "_BLOCKS", ("BasicTransformerBlock", "Upsample2D"))
    family: Any = load_family(make_tiny(tmp_path / "tiny"), dtype=torch.float32, device=torch.device("cpu"))

    def predict(*, rows: int = 2, side: int = 8, chunks: int = 1) -> tuple[torch.Tensor, int]:
        [text] = family.encode([Prompt(family.tokenize("a cat").padded(chunks))])
        conditioning = {name: tensor.expand(rows, *tensor.shape) for name, tensor in text.items()}
        latents = torch.randn(rows, 4, side, side, generator=torch.Generator().manual_seed(0))
        before = graphs()
        return family.predict(latents, torch.full((rows,), 500.0), conditioning), graphs() - before

    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, pixels = predict()[0], family.decode(latents)[0]
    family.compile()
    compiled, of_first_call = predict()
    assert of_first_call >= 1
    assert torch.equal(compiled, plain)
    assert [predict()[1], predict(chunks=2)[1], predict(chunks=3)[1], predict(side=10)[1]] == [0] * 4
    before = graphs()
    assert torch.equal(family.decode(latents)[0], pixels)
    of_decoder = graphs() - before
    assert of_decoder >= 1
    family.decode(latents, float32=True)
    family.decode(latents, tiled=True)
    family.decode(torch.randn(1, 4, 8, 10))
    assert graphs() - before == of_decoder
    family.uncompile()
    assert (predict(rows=3)[1], family.compiled) == (0, False)


@pytest.mark.parametrize(
    ("kind", "blocks"),
    [
        ("sd3", ["JointTransformerBlock"]),
        ("flux", ["FluxTransformerBlock", "FluxSingleTransformerBlock"]),
        pytest.param("chroma", ["ChromaTransformerBlock", "ChromaSingleTransformerBlock"], marks=pytest.mark.slow),
        pytest.param("flux2", ["Flux2TransformerBlock", "Flux2SingleTransformerBlock"], marks=pytest.mark.slow),
        ("zimage", ["ZImageTransformerBlock"]),
    ],
)
def test_the_blocks_of_a_transformer_run_compiled_for_its_native_size_and_texts_of_any_length(
    kind: Kind, blocks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {*blocks} < {*compiled_blocks._BLOCKS}
    # those of the decoder are tested above
    monkeypatch.setattr(compiled_blocks, "_BLOCKS", blocks)
    family: Any = load_family(make_tiny(tmp_path / "tiny", kind=kind), dtype=torch.float32, device=torch.device("cpu"))

    def predict(prompt: str = "a cat", *, height: int = 64) -> tuple[torch.Tensor, int]:
        [text] = family.encode([Prompt(family.tokenize(prompt))])
        tensors = {**text, **family.row_conditioning(64, height, 3.5)}
        conditioning = {name: tensor.expand(2, *tensor.shape) for name, tensor in tensors.items()}
        shape = (2, family.latent_channels, height // family.vae_scale_factor, 64 // family.vae_scale_factor)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        before = graphs()
        return family.predict(latents, torch.full((2,), 500.0), conditioning), graphs() - before

    plain = predict()[0]
    family.compile()
    compiled, of_first_call = predict()
    assert of_first_call >= len(blocks)
    assert torch.equal(compiled, plain)
    assert [predict()[1], predict(height=80)[1], predict("many words " * 9)[1]] == [0, 0, 0]


def test_no_number_of_batch_sizes_runs_uncompiled_without_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    block = ResnetBlock2D()
    for limit in (512, 2):
        monkeypatch.setattr(compiled_blocks, "_MAX_GRAPHS", limit)
        compile_blocks(torch.nn.Sequential(block))
        before = graphs()
        for rows in range(2, 2 + min(limit, 12)):
            block(torch.ones(rows))
        assert graphs() - before == min(limit, 12)
    with pytest.raises(RuntimeError, match="no compiled frames"):
        block(torch.ones(99))
    uncompile_blocks(block)
    assert torch.equal(block(torch.ones(99)), torch.full((99,), 2.0))

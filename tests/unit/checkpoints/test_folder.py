"""Diffusers folders with variants and shards, other VAEs, and the licence of the model card."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.engines import make, render_alone
from tests.support.original_layouts import single_file_tensors
from tests.support.tiny import make_tiny

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints import open_checkpoint
from latentfarm_worker.models import Family, load_family

pytestmark = pytest.mark.unit

PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "sd1")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def load(source: object, dtype: torch.dtype = torch.float32) -> Family:
    return load_family(str(source), dtype=dtype, device=torch.device("cpu"))


def image(family: Family) -> bytes:
    return render_alone(family, make(0, prompt="a red circle", num_inference_steps=2))


def weights(folder: Path, part: str) -> Path:
    return folder / part / ("model" if part == "text_encoder" else "diffusion_pytorch_model")


def cast(folder: Path, part: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    tensors = load_file(weights(folder, part).with_suffix(".safetensors"))
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def test_a_variant_is_read_where_a_part_has_it_and_plain_weights_elsewhere(tiny: Path, folder: Path) -> None:
    for part in ("unet", "text_encoder"):
        save_file(cast(folder, part, torch.float16), weights(folder, part).with_suffix(".fp16.safetensors"))
        # plain weights would render another image
        save_file(
            {name: tensor * 2 for name, tensor in cast(folder, part, torch.float32).items()},
            weights(folder, part).with_suffix(".safetensors"),
        )
    one, other = open_checkpoint(f"{folder},variant=fp16"), open_checkpoint(str(folder))
    assert one.digest(PARTS) != other.digest(PARTS)
    # float16 holds the numbers of float16
    half = tiny.parent / "half"
    if not half.exists():
        shutil.copytree(tiny, half)
        for part in ("unet", "text_encoder"):
            save_file(cast(half, part, torch.float16), weights(half, part).with_suffix(".safetensors"))
    assert image(load(f"{folder},variant=fp16")) == image(load(half))
    assert image(load(folder)) != image(load(half))


def test_a_variant_that_no_part_has_is_an_error_with_those_there_are(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no part has the variant 'fp16'; there are no variants: write another"):
        open_checkpoint(f"{folder},variant=fp16")
    save_file(cast(folder, "vae", torch.float16), weights(folder, "vae").with_suffix(".bf16.safetensors"))
    with pytest.raises(ModelError, match=r"no part has the variant 'fp16'; there are bf16: write another"):
        open_checkpoint(f"{folder},variant=fp16")


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_sharded_weights_render_the_same_bytes(tiny: Path, folder: Path, variant: str) -> None:
    """As save_pretrained writes shards, and as their names are with a variant."""
    import diffusers
    import transformers

    for part, kind in (("unet", diffusers.UNet2DConditionModel), ("text_encoder", transformers.CLIPTextModel)):
        model = kind.from_pretrained(tiny / part)
        weights(folder, part).with_suffix(".safetensors").unlink()
        model.save_pretrained(folder / part, max_shard_size="100KB", variant=variant or None)
        assert len(list((folder / part).glob("*-of-*.safetensors"))) > 1, sorted((folder / part).iterdir())
    source = f"{folder},variant={variant}" if variant else folder
    assert image(load(source)) == image(load(tiny))
    before = open_checkpoint(str(source)).digest(PARTS)
    shard = max((folder / "unet").glob("*-of-*.safetensors"))
    tensors = {name: tensor + 1 for name, tensor in load_file(shard).items()}
    save_file(tensors, shard)
    assert open_checkpoint(str(source)).digest(PARTS) != before, "each shard counts"


def test_pickled_weights_are_refused(folder: Path) -> None:
    path = weights(folder, "unet").with_suffix(".safetensors")
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"only diffusion_pytorch_model.bin there; latentfarm loads safetensors only"):
        load(folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("other") / "sd1", seed=1)


def test_another_vae_decodes_as_if_the_folder_had_it(tiny: Path, folder: Path, other: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "vae")
    shutil.copytree(other / "vae", folder / "vae")
    wanted = image(load(folder))
    assert wanted != image(load(tiny))
    original = tmp_path / "vae.safetensors"
    tensors = single_file_tensors(other, "sd1", without=("unet", "text_encoder"))
    save_file({name.removeprefix("first_stage_model."): tensor for name, tensor in tensors.items()}, original)
    prefixed = tmp_path / "prefixed.safetensors"
    save_file(tensors, prefixed)
    diffusers_names = other / "vae" / "diffusion_pytorch_model.safetensors"
    for vae in (other, other / "vae", original, prefixed, diffusers_names):
        assert image(load(f"{tiny},vae={vae}")) == wanted, vae
    digests = {open_checkpoint(f"{tiny},vae={vae}").digest(PARTS) for vae in (tiny, other)}
    assert len(digests) == 2


def test_a_vae_of_another_family_or_none_is_an_error_with_the_cure(tiny: Path, tmp_path: Path) -> None:
    sd3 = make_tiny(tmp_path / "sd3", kind="sd3")
    with pytest.raises(ModelError, match=r"is a VAE for latents of 16 channels, but the model makes 4; .* --vae"):
        open_checkpoint(f"{tiny},vae={sd3}")
    with pytest.raises(ModelError, match=r"is no VAE alone; name a VAE's file or folder with --vae"):
        open_checkpoint(f"{tiny},vae={tiny / 'unet' / 'diffusion_pytorch_model.safetensors'}")
    with pytest.raises(ModelError, match=r"no config.json of a VAE there"):
        open_checkpoint(f"{tiny},vae={tmp_path}")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: openrail++\ntags:\n- text-to-image\n---\n# Model\n", "openrail++"),
        ("---\ntags: [a]\nlicense: other\nlicense_name: flux-1-dev-non-commercial-license\n---\n",
         "flux-1-dev-non-commercial-license"),
        ('---\nlicense: "apache-2.0"\n---', "apache-2.0"),
        ("---\nlicense: other\n---\n", "other"),
        ("# Model\nlicense: mit\n", None),
        ("---\ntags: []\n---\n\nlicense: mit\n", None),
        ("\udcff".encode("utf-8", "surrogateescape"), None),
        (None, None),
    ],
)  # fmt: skip
def test_the_licence_is_that_of_the_model_card(folder: Path, card: str | bytes | None, licence: str | None) -> None:
    if card is not None:
        (folder / "README.md").write_bytes(card.encode() if isinstance(card, str) else card)
    assert open_checkpoint(str(folder)).licence == licence


def test_a_base_for_a_folder_is_an_error(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"a diffusers folder has its tokenizers and configs; leave out --base"):
        open_checkpoint(f"{folder},base={folder}")


def test_half_precision_is_whole_even_if_the_files_are_not(tmp_path: Path) -> None:
    """Without accelerate, diffusers keeps a file's dtype for a model whose first tensor is a buffer in float32."""
    import diffusers

    folder = make_tiny(tmp_path / "sd3", kind="sd3")
    checkpoint = open_checkpoint(str(folder))
    module = checkpoint.load_model("transformer", diffusers.SD3Transformer2DModel, torch.float16)
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float16}

"""``latentfarm model inspect`` describes a model without torch and without its weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.original_layouts import write_single_file
from tests.support.tiny import Kind, make_tiny
from typer.testing import CliRunner

from latentfarm.cli import app
from latentfarm.errors import LatentfarmError, ModelError
from latentfarm_worker.checkpoints.inspection import inspect
from latentfarm_worker.checkpoints.published import SERVED
from latentfarm_worker.models import FAMILIES, load_family

pytestmark = pytest.mark.unit


def invoke(*words: str) -> tuple[int, str]:
    """Run a command; return its exit code, and its error if it has one, else its output."""
    ran = CliRunner().invoke(app, words)
    if isinstance(ran.exception, LatentfarmError):
        return ran.exception.exit_code, str(ran.exception)
    return ran.exit_code, ran.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.mark.parametrize(
    ("kind", "name", "guidance", "prediction"),
    [
        ("sd1", "Stable Diffusion 1.x", "classifier-free", "epsilon"),
        ("sd2", "Stable Diffusion 2.x", "classifier-free", "v_prediction"),
        ("sdxl", "Stable Diffusion XL", "classifier-free", "epsilon"),
        ("sd3", "Stable Diffusion 3", "classifier-free", "flow"),
        ("flux", "FLUX.1", "embedded", "flow"),
        ("schnell", "FLUX.1", "none", "flow"),
        ("flux2-distilled", "FLUX.2", "none", "flow"),
        ("zimage", "Z-Image", "classifier-free", "flow"),
    ],
)
def test_a_folder_is_described_as_a_worker_loads_it(
    root: Path, kind: Kind, name: str, guidance: str, prediction: str
) -> None:
    folder = make_tiny(root / kind, kind=kind)
    found = inspect(folder, digest=True)
    assert (found.family, found.guidance, found.prediction, found.served) == (name, guidance, prediction, True)
    family = load_family(folder, dtype=torch.float32, device=torch.device("cpu"))
    assert (found.native_width, found.native_height) == (family.native_width, family.native_height)
    assert found.pixel_multiple == family.pixel_multiple
    assert family.embeds_guidance or found.guidance != "embedded"
    assert found.digest == family.model_digest
    counted = {part: sum(each.numel() for each in module.state_dict().values())
               for part, module in family.modules.items() if part != "unet"}  # fmt: skip
    counts = {part.part: part.parameters for part in found.parts}
    # a loaded U-Net has fused matrices too, and a tied matrix is in a file once
    assert counts.keys() == family.modules.keys()
    assert all(counts[part] in {number, number - _tied(family, part)} for part, number in counted.items())
    # a count of batches in a VAE has eight bytes
    assert 0 <= sum(part.size for part in found.parts) - found.memory["float32"] <= 4
    assert not found.missing


def _tied(family: Any, part: str) -> int:
    tied = getattr(family.modules[part], "_tied_weights_keys", None) or ()
    state = family.modules[part].state_dict()
    return sum(state[name].numel() for name in tied if name in state)


def test_all_families_are_known_to_be_served() -> None:
    assert set(FAMILIES) == SERVED


def test_a_file_is_described_with_what_it_lacks(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = make_tiny(root / "flux", kind="flux")
    file = write_single_file(folder, tmp_path / "flux1.safetensors", "flux", dtype=torch.bfloat16,
                             metadata={"modelspec.license": "FLUX.1 [dev] Non-Commercial License"})  # fmt: skip
    found = inspect(file)
    assert (found.family, found.licence) == ("FLUX.1", "FLUX.1 [dev] Non-Commercial License")
    assert [(part.part, part.dtypes) for part in found.parts] == [("transformer", ("bfloat16",))]
    [missing] = found.missing
    assert "its tokenizers and the parts vae, text_encoder, text_encoder_2, which it lacks" in missing
    assert "--base black-forest-labs/FLUX.1-dev" in missing
    complete = inspect(f"{file},base={folder}")
    assert not complete.missing
    assert [part.part for part in complete.parts] == ["transformer", "vae", "text_encoder", "text_encoder_2"]
    assert complete.memory["float16"] == 2 * complete.parameters


def test_missing_and_damaged_parts_are_listed(root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_tiny(root / "sd1"), tmp_path / "model"))
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = inspect(folder)
    assert [part.part for part in found.parts] == ["text_encoder"]
    assert any("is damaged" in each for each in found.missing)
    assert any("no weights there" in each for each in found.missing)


def test_the_command_prints_lines_or_json_and_fails_if_something_is_missing(root: Path, tmp_path: Path) -> None:
    folder = make_tiny(root / "sdxl", kind="sdxl")
    code, text = invoke("model", "inspect", str(folder))
    assert code == 0, text
    assert "family     Stable Diffusion XL (StableDiffusionXLPipeline)" in text
    assert "UNet2DConditionModel" in text
    data: dict[str, Any] = json.loads(invoke("model", "inspect", str(folder), "--json")[1])
    assert (data["native_width"], data["parts"][0]["part"], data["digest"]) == (64, "unet", None)
    file = write_single_file(folder, tmp_path / "a.safetensors", "sdxl", without=("vae",))
    code, text = invoke("model", "inspect", str(file), "--base", str(folder), "--vae", str(folder))
    assert code == 0, text
    assert invoke("model", "inspect", f"{file},base={tmp_path}")[0] == 1
    code, text = invoke("model", "inspect", "no-one/nothing")
    assert code == 2
    assert text == "no-one/nothing: not in the local hub cache; run `hf download no-one/nothing` first"


def test_inspection_imports_no_torch(root: Path) -> None:
    folder = make_tiny(root / "sd1")
    program = (
        "import sys; from latentfarm_worker.checkpoints.inspection import inspect; "
        f"assert inspect({str(folder)!r}).served; "
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"<html>")
    with pytest.raises(ModelError, match="is a web page"):
        inspect(tmp_path / "a.safetensors")

from __future__ import annotations

from pathlib import Path

import pytest

from latentfarm.errors import InputError
from latentfarm.model_source import ModelSource, parse_source
from latentfarm.model_spec import ModelSpec, parse_model, with_options

pytestmark = pytest.mark.unit

HUB_ID = "CompVis/stable-diffusion-v1-4"


def test_a_model_is_an_alias_a_folder_a_hub_id_or_an_alias_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "My Model"
    folder.mkdir()
    assert parse_model("mini") == ModelSpec("mini", "")
    assert parse_model("mini-flow") == ModelSpec("mini-flow", "mini-flow")
    assert parse_model("sd=mini-flow") == ModelSpec("sd", "mini-flow")
    assert parse_model(str(folder)) == ModelSpec("my-model", str(folder))
    assert parse_model(HUB_ID) == ModelSpec("stable-diffusion-v1-4", HUB_ID)
    assert parse_model(f"sd={folder}") == ModelSpec("sd", str(folder))
    assert parse_model("sd=mini") == ModelSpec("sd", "")
    for invalid in ("nothing", "SD=mini", "sd=nowhere", "", "a.safetensors", f"{HUB_ID}/a.txt"):
        with pytest.raises(InputError, match="model"):
            parse_model(invalid)


def test_a_model_may_be_a_file_of_this_machine_or_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "DreamShaper 8.safetensors"
    file.touch()
    monkeypatch.chdir(tmp_path)
    # absolute, because a worker may run in another folder
    assert parse_model(file.name) == ModelSpec("dreamshaper-8", str(file))
    assert parse_model(f"sd={file.name}") == ModelSpec("sd", str(file))
    assert parse_model("org/repo/v1/a.safetensors") == ModelSpec("a", "org/repo/v1/a.safetensors")


def test_a_source_has_options_after_its_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, base = tmp_path / "a,b.safetensors", tmp_path / "base"
    file.touch()
    base.mkdir()
    monkeypatch.chdir(tmp_path)
    text = f"{file.name},base=base,vae=stabilityai/sd-vae-ft-mse,variant=fp16,revision=refs/pr/1"
    spec = parse_model(f"sd={text}")
    assert parse_source(spec.source) == ModelSource(
        str(file), str(base), "stabilityai/sd-vae-ft-mse", "fp16", "refs/pr/1"
    )
    assert parse_model(text).source == spec.source, "without an alias"
    assert str(parse_source(spec.source)) == spec.source
    for invalid in (f"{HUB_ID},variant=", f"{HUB_ID},variant=a,variant=b", f"{HUB_ID},base=nowhere"):
        with pytest.raises(InputError, match=r"variant=|base 'nowhere'"):
            parse_model(invalid)


def test_options_of_the_command_line_take_the_place_of_those_in_the_text() -> None:
    assert with_options(HUB_ID) == HUB_ID
    assert with_options(f"{HUB_ID},variant=a", variant="fp16", revision="v1") == f"{HUB_ID},variant=fp16,revision=v1"
    with pytest.raises(InputError, match="--vae: a bundled model takes none"):
        with_options("", vae=HUB_ID)
    with pytest.raises(InputError, match="--base: a bundled model takes none"):
        with_options("mini-flow", base=HUB_ID)
    with pytest.raises(InputError, match="base 'nowhere' is neither"):
        with_options(HUB_ID, base="nowhere")

from __future__ import annotations

from pathlib import Path

import pytest

from latentfarm.errors import InputError
from latentfarm.model_source import ModelSource, parse_source
from latentfarm.model_spec import (
    ModelSpec,
    of_model,
    parse_model,
    parse_models,
    served_models,
    with_models,
    with_options,
)
from latentfarm.settings import Settings

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


def test_a_worker_of_several_models_has_them_in_one_setting(tmp_path: Path) -> None:
    specs = parse_models(["mini", f"a={HUB_ID},variant=fp16", f"b={tmp_path}"])
    settings = with_models(Settings(), specs)
    assert settings.models == f"mini=mini; a={HUB_ID},variant=fp16; b={tmp_path}"
    assert (settings.model, settings.model_source) == ("mini", "")
    assert served_models(settings) == specs
    assert (of_model(settings, "a").model_source, of_model(settings, "a").models) == (f"{HUB_ID},variant=fp16", "")
    assert of_model(settings, "other") == settings


def test_a_worker_of_one_model_has_its_usual_settings() -> None:
    settings = with_models(Settings(models="mini=mini; a=b/c"), parse_models([f"a={HUB_ID}"]))
    assert (settings.model, settings.model_source, settings.models) == ("a", HUB_ID, "")
    assert served_models(settings) == (ModelSpec("a", HUB_ID),)


def test_models_that_no_worker_can_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model 'a' is there twice"):
        parse_models([f"a={HUB_ID}", "a=mini"])
    with pytest.raises(InputError, match="model source 'nowhere' is neither"):
        served_models(Settings(models="a=nowhere; mini"))
    folder = tmp_path / "with;semicolon"
    folder.mkdir()
    with pytest.raises(InputError, match="takes no path with a semicolon"):
        with_models(Settings(), parse_models(["mini", f"a={folder}"]))

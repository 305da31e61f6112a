from __future__ import annotations

from pathlib import Path

import pytest

from latentfarm.errors import InputError
from latentfarm.model_spec import ModelSpec, parse_model

pytestmark = pytest.mark.unit


def test_a_model_is_an_alias_a_folder_a_hub_id_or_an_alias_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "My Model"
    folder.mkdir()
    assert parse_model("mini") == ModelSpec("mini", "")
    assert parse_model(str(folder)) == ModelSpec("my-model", str(folder))
    assert parse_model("CompVis/stable-diffusion-v1-4") == ModelSpec(
        "stable-diffusion-v1-4", "CompVis/stable-diffusion-v1-4"
    )
    assert parse_model(f"sd={folder}") == ModelSpec("sd", str(folder))
    for invalid in ("nothing", "SD=mini", "sd=nowhere", ""):
        with pytest.raises(InputError, match="model"):
            parse_model(invalid)

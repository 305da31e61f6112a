"""The options for input images, adapters and a second stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from latentfarm.cli import app
from latentfarm.cli.edit_options import edit_fields
from latentfarm.edit_fields import EDIT_FIELDS
from latentfarm.submission.prompts import Notes, check_defaults

pytestmark = pytest.mark.unit

COMMANDS: Any = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", ["render", "submit", "estimate"])
def test_each_field_has_an_option_of_its_name_in_a_group_of_its_own(command: str) -> None:
    grouped = {each.name for each in COMMANDS[command].params if each.rich_help_panel == "Image options"}
    assert grouped == {"lora" if name == "loras" else name for name in EDIT_FIELDS}


def test_options_are_the_defaults_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = edit_fields(
        image="a.png",
        mask_image="transparent:b.png",
        strength=0.5,
        lora=["outlined:0.8,striped", "furry:-1"],
        controlnet=["edges", "depth"],
        control_image=["a,b.png", "s3://bucket/c.png"],
        controlnet_conditioning_scale=["0.5,1"],
        control_preprocessor=["canny"],
        ip_adapter=["plus"],
        ip_adapter_image=["data:image/png;base64,AAAA"],
        refiner="fine",
        refiner_start=0.7,
    )
    defaults = check_defaults(found, Notes()).given()
    assert [(lora.name, lora.scale) for lora in defaults.pop("loras")] == [
        ("outlined", 0.8),
        ("striped", 1.0),
        ("furry", -1.0),
    ]
    assert defaults == {
        # a prompt file may be in another folder
        "image": f"{tmp_path}/a.png",
        "mask_image": f"transparent:{tmp_path}/b.png",
        "strength": 0.5,
        "controlnet": ("edges", "depth"),
        "control_image": (f"{tmp_path}/a,b.png", "s3://bucket/c.png"),
        "controlnet_conditioning_scale": (0.5, 1.0),
        "control_preprocessor": ("canny",),
        "ip_adapter": ("plus",),
        "ip_adapter_image": ("data:image/png;base64,AAAA",),
        "refiner": "fine",
        "refiner_start": 0.7,
    }


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--strength", "0"], "options: strength 0.0 is invalid; write greater than 0"),
        (["--lora", "a b"], "options: loras 'a b' is not a name; write 1 to 128 characters"),
        (["--lora", "a:x"], "options: loras 'x' is invalid; write a valid number"),
        (["--safety", "on"], "options: safety 'on' is invalid; write 'off', 'score' or 'refuse'"),
        (["--controlnet", "edges"], "p.txt line 1: controlnet has no control_image; write both"),
        (["--refiner", "fine", "--refiner-start", "1"], "options: refiner_start 1.0 is invalid; write less than 1"),
        (["--hires-scale", "5"], "options: hires_scale 5.0 is invalid; write less than or equal to 4"),
    ],
)
def test_an_invalid_option_is_an_error_with_its_cure(tmp_path: Path, arguments: list[str], problem: str) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    result = CliRunner().invoke(app, ["estimate", str(tmp_path / "p.txt"), *arguments], env={"REDIS_URL": ""})
    assert result.exit_code in {1, 2}
    shown = result.output if result.exception is None else f"{result.output}{result.exception}"
    assert problem in shown


def test_an_estimate_counts_steps_and_names_adapters(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    arguments = ["--num-inference-steps", "20", "--hires-scale", "2", "--sweep", "loras=outlined,striped,none"]
    command = ["estimate", str(tmp_path / "p.txt"), *arguments]
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (found["jobs"], found["steps"], found["inputs"]) == (6, 6 * (20 + 14), 0)
    assert found["adapters"] == {"lora": ["outlined", "striped"]}
    refined = [*command[:2], "--num-inference-steps", "20", "--sweep", "refiner=fine,other"]
    found = json.loads(CliRunner().invoke(app, [*refined, "--json"]).stdout)
    assert (found["jobs"], found["steps"], found["adapters"]) == (4, 80, {"refiner": ["fine", "other"]})
    lines = CliRunner().invoke(app, command).stdout
    assert "steps           204" in lines
    assert "LoRAs           outlined, striped" in lines

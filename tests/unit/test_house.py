"""What the project promises of itself: layers, names, help and docs."""

from __future__ import annotations

import ast
import re
from importlib.metadata import requires
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import typer
from tests.conftest import REPOSITORY
from typer.main import get_command

import latentfarm
from latentfarm import schedulers
from latentfarm.cli import app
from latentfarm.errors import InputError, JobError, LatentfarmError, ModelError, UnavailableError

pytestmark = pytest.mark.unit

LIGHT = REPOSITORY / "producer" / "latentfarm"
WORKER = REPOSITORY / "worker" / "latentfarm_worker"
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def imports_of(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def roots_of(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports_of(file)}


def test_the_light_side_names_no_torch() -> None:
    heavy = {"torch", "diffusers", "transformers", "numpy"}
    assert {file.name for file in LIGHT.rglob("*.py") if roots_of(file) & heavy} == set()


def test_only_commands_that_run_a_worker_import_the_worker() -> None:
    knowing = {
        file.relative_to(LIGHT).as_posix() for file in LIGHT.rglob("*.py") if "latentfarm_worker" in roots_of(file)
    }
    assert knowing == {"cli/bench.py", "cli/doctor.py", "cli/plan.py", "cli/run.py", "cli/verify.py"}


def test_the_engine_knows_no_queue_and_no_store() -> None:
    engine = [WORKER / name for name in ("engine.py", "rows.py", "plan.py", "text.py")] + [
        *(WORKER / "families").glob("*.py")
    ]
    for file in engine:
        assert not roots_of(file) & {"redis", "boto3", "botocore", "celery", "kombu"}, file.name
        assert not imports_of(file) & {"latentfarm.ledger", "latentfarm.storage.bucket", "latentfarm.doorbell"}, (
            file.name
        )


def test_no_clock_but_redis_time_decides_anything() -> None:
    # a presigned URL tells its own end by the clock that signs it
    own_clock = re.compile(r"\btime\.time(_ns)?\(|datetime\.(now|utcnow|today)\(")
    files = [*LIGHT.rglob("*.py"), *WORKER.rglob("*.py")]
    assert [file.name for file in files if own_clock.search(file.read_text())] == ["batch.py"]


def test_no_pickle_anywhere() -> None:
    for file in [*LIGHT.rglob("*.py"), *WORKER.rglob("*.py")]:
        assert not roots_of(file) & {"pickle", "dill", "marshal", "shelve"}, file.name


def test_everything_exported_is_there() -> None:
    assert [name for name in latentfarm.__all__ if not hasattr(latentfarm, name)] == []


def test_the_light_install_brings_no_torch() -> None:
    light = [line for line in requires("latentfarm") or [] if "extra ==" not in line]
    assert light
    assert not [line for line in light if re.match(r"(torch|diffusers|transformers|numpy)\b", line)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_in_its_help_and_a_place_in_the_reference(name: str) -> None:
    assert f"Example: `latentfarm {name}" in (COMMANDS[name].help or "")
    assert f"## latentfarm {name}" in (REPOSITORY / "docs" / "reference" / "cli.md").read_text()


def test_the_reference_tells_the_commands_as_they_are() -> None:
    spec = spec_from_file_location("write_reference", REPOSITORY / "docs" / "write_reference.py")
    assert spec is not None
    assert spec.loader is not None
    writer = module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert writer.REFERENCE.read_text() == writer.reference_text(), "run make docs"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_explained(name: str) -> None:
    assert [option.name for option in COMMANDS[name].params if not getattr(option, "help", "")] == []


def test_every_setting_is_in_the_reference() -> None:
    text = (REPOSITORY / "docs" / "reference" / "settings.md").read_text()
    from latentfarm.settings import Settings

    names = [
        str(field.validation_alias or f"LATENTFARM_{name.upper()}") for name, field in Settings.model_fields.items()
    ]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_exit_codes_follow_whose_fault_it_is() -> None:
    assert {error.exit_code for error in (InputError, ModelError, JobError, LatentfarmError)} == {2}
    assert UnavailableError.exit_code == 3


def test_every_module_keeps_to_a_readable_length() -> None:
    long = {
        f.name: n for f in [*LIGHT.rglob("*.py"), *WORKER.rglob("*.py")] if (n := len(f.read_text().splitlines())) > 450
    }
    assert long == {}


def test_a_short_scheduler_name_and_a_class_name_are_both_known() -> None:
    assert schedulers.resolve("euler").class_name == "EulerDiscreteScheduler"
    assert schedulers.resolve("EulerDiscreteScheduler").class_name == "EulerDiscreteScheduler"
    assert isinstance(app, typer.Typer)

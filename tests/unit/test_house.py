"""The project's own rules: exported names, sizes of modules and functions, help and reference of the commands."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from importlib.metadata import requires
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import grimp
import pytest
from tests.conftest import REPOSITORY
from typer.main import get_command

import latentfarm
from latentfarm.cli import COMMANDS, app
from latentfarm.errors import InputError, JobError, LatentfarmError, ModelError, UnavailableError
from latentfarm.settings import Settings

pytestmark = pytest.mark.unit

LOADED = get_command(app).commands  # type: ignore[attr-defined]
ENTRIES = {name: entry for group in COMMANDS.values() for name, entry in group.items()}
FILES = [*(REPOSITORY / "producer").rglob("*.py"), *(REPOSITORY / "worker").rglob("*.py")]
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 400, 60


def functions_of(file: Path) -> Iterator[tuple[str, int]]:
    """Yield each function's name and lines, without its decorators."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1


def body_lines(file: Path, name: str) -> int:
    """Return the lines of a command's body: its options and its help are not counted."""
    [node] = [
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    return (node.end_lineno or 0) - node.body[1].lineno + 1


def test_no_module_has_over_400_lines() -> None:
    lines = {file.relative_to(REPOSITORY).as_posix(): len(file.read_text().splitlines()) for file in FILES}
    assert {name: count for name, count in lines.items() if count > MAX_MODULE_LINES} == {}


def test_no_function_has_over_60_lines() -> None:
    commands = {entry.target.partition(":")[2] for entry in ENTRIES.values()}
    long = {}
    for file in FILES:
        for name, count in functions_of(file):
            is_command = file.parent.name == "cli" and name in commands
            length = body_lines(file, name) if is_command and count > MAX_FUNCTION_LINES else count
            if length > MAX_FUNCTION_LINES:
                long[f"{file.relative_to(REPOSITORY).as_posix()}:{name}"] = length
    assert long == {}


def test_the_dashboard_has_under_2500_lines_of_javascript() -> None:
    # the types are in comments, and each of their fields has a line
    code = re.compile(r"^(?!\s*(?:/?\*|//|$)).", re.MULTILINE)
    lines = {file.name: len(code.findall(file.read_text())) for file in (REPOSITORY / "producer").rglob("*.js")}
    assert 0 < sum(lines.values()) < 2_500, lines


def test_the_lock_of_the_javascript_tools_names_no_registry() -> None:
    lock = json.loads((REPOSITORY / ".ci" / "javascript" / "package-lock.json").read_text())
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []
    assert all("integrity" in package for name, package in lock["packages"].items() if name)


def test_no_clock_but_that_of_redis_decides_anything() -> None:
    # a presigned URL expires by the clock of the machine that signs it, and so does a session of the HTTP server
    own_clock = re.compile(r"\btime\.time(_ns)?\(|datetime\.(now|utcnow|today)\(")
    product = [file for file in FILES if "mini_training" not in file.parts]
    allowed = {"batch.py", "get_signer.py", "guard.py", "session_operations.py"}
    assert {file.name for file in product if own_clock.search(file.read_text())} == allowed


def test_every_exported_name_exists() -> None:
    assert [name for name in latentfarm.__all__ if not hasattr(latentfarm, name)] == []


def test_the_light_install_brings_no_torch() -> None:
    light = [line for line in requires("latentfarm") or [] if "extra ==" not in line]
    assert light
    assert not [line for line in light if re.match(r"(torch|diffusers|transformers|numpy)\b", line)]


def test_the_wheel_has_every_package_but_the_training_code() -> None:
    found = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    folders = [folder for where in found["where"] for folder in (REPOSITORY / where).iterdir()]
    packages = {folder.name for folder in folders if (folder / "__init__.py").exists()}
    left_out = {name for name in packages for pattern in found["exclude"] if fnmatch(name, pattern)}
    assert packages - left_out == {"latentfarm", "latentfarm_worker"}
    # the finder skips a folder without this file
    assert {file.parent for file in FILES if not (file.parent / "__init__.py").exists()} == set()


@pytest.mark.parametrize("name", ENTRIES)
def test_every_command_has_an_example_in_its_help_and_a_section_in_the_reference(name: str) -> None:
    assert f"Example: `latentfarm {name}" in (LOADED[name].help or "")
    assert f"## latentfarm {name}" in (REPOSITORY / "docs" / "reference" / "cli.md").read_text()


def test_the_reference_lists_the_commands_and_names_as_they_are() -> None:
    spec = spec_from_file_location("write_reference", REPOSITORY / "docs" / "write_reference.py")
    assert spec is not None
    assert spec.loader is not None
    writer = module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert writer.REFERENCE.read_text() == writer.reference_text(), "run make docs"
    assert writer.PROMPT_FILES.read_text() == writer.prompt_files_text(), "run make docs"
    assert writer.HTTP.read_text() == writer.http_text(), "run make docs"


def test_every_setting_is_in_the_reference() -> None:
    text = (REPOSITORY / "docs" / "reference" / "settings.md").read_text()
    names = [
        str(field.validation_alias or f"LATENTFARM_{name.upper()}") for name, field in Settings.model_fields.items()
    ]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_exit_codes_depend_on_the_cause() -> None:
    assert {error.exit_code for error in (InputError, ModelError, JobError, LatentfarmError)} == {2}
    assert UnavailableError.exit_code == 3


def test_a_worker_has_mkl_round_each_row_alike() -> None:
    code = "import os, latentfarm_worker; print(os.environ['MKL_CBWR'])"
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "AUTO,STRICT"


@pytest.mark.parametrize("package", ["latentfarm", "latentfarm_worker"])
def test_no_imports_go_in_a_circle(package: str) -> None:
    graph = grimp.build_graph(package, cache_dir=None)
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()

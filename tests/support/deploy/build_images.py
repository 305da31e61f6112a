"""Build the images with Debian's packages only: buildah, on a base made by debootstrap."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

BASE = "localhost/latentfarm-base"
#: packages that the images require of their base
_PACKAGES = "ca-certificates,python3,python3-dev,python3-venv"
_SUITE = "bookworm"
#: kept between runs, because it takes a minute to make
_BASE_ARCHIVE = REPOSITORY / "build" / f"base-{_SUITE}.tar"


class Builder:
    """Build images with buildah, with its own store in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = ["--storage-driver", "vfs", "--root", str(folder / "store"), "--runroot", str(folder / "run")]

    def _buildah(self, command: str, *arguments: str) -> str:
        return _run(["buildah", *self._store, command, *arguments]).strip()

    def make_base(self) -> None:
        """Make the image that is BASE of both Dockerfiles."""
        if not _BASE_ARCHIVE.exists():
            make_archive(_BASE_ARCHIVE, self._folder / "base")
        container = self._buildah("from", "scratch")
        self._buildah("add", container, str(_BASE_ARCHIVE), "/")
        self._buildah("commit", "--rm", container, BASE)

    def build(self, dockerfile: Path) -> Built:
        """Build an image as `docker build` does, and mount it."""
        name = f"localhost/{dockerfile.name.removesuffix('.Dockerfile')}"
        arguments = {"BASE": BASE, "TORCH_INDEX": os.environ.get("TORCH_INDEX", "")}
        build_args = [text for key, value in arguments.items() for text in ("--build-arg", f"{key}={value}")]
        mounts = [text for mount in pip_mounts(self._folder) for text in ("--volume", mount)]
        options = ["--isolation", "chroot", "--format", "docker", "--file", str(dockerfile), "--tag", name]
        self._buildah("build", *options, *build_args, *mounts, ".")
        config = json.loads(self._buildah("inspect", "--type", "image", name))["Docker"]["config"]
        root = self._buildah("mount", self._buildah("from", "--pull-never", name))
        return Built(Path(root), config)


@dataclass(frozen=True)
class Built:
    """An image: its root file system, and its configuration in Docker's format."""

    root: Path
    config: dict[str, Any]

    @cached_property
    def files(self) -> list[Path]:
        return [Path(folder, name) for folder, _, names in os.walk(self.root) for name in names]

    @property
    def bytes(self) -> int:
        """Return the total size of the files."""
        return sum(file.lstat().st_size for file in self.files)


def make_archive(archive: Path, folder: Path) -> None:
    """Write a small Debian with the packages that the images require."""
    archive.parent.mkdir(exist_ok=True)
    options = ["--variant=minbase", "--force-check-gpg", f"--include={_PACKAGES}"]
    _run(["debootstrap", *options, _SUITE, str(folder)])
    _run(["chroot", str(folder), "apt-get", "clean"])
    # renamed when complete: an interrupted run must not leave half an archive to the next one
    half = archive.with_suffix(".half")
    _run(
        [
            "tar",
            "--create",
            "--file",
            str(half),
            "--exclude",
            "./proc/*",
            "--exclude",
            "./sys/*",
            "-C",
            str(folder),
            ".",
        ]
    )
    half.rename(archive)
    shutil.rmtree(folder)


def pip_mounts(folder: Path) -> list[str]:
    """Return the mounts that give a build's pip the same package index as this machine's pip.

    They are pip's configuration, with that of its variables, and the files that it names.
    """
    listed = _run([sys.executable, "-m", "pip", "config", "list"])
    found: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        # `global.cert` is from a file, `:env:.cert` from a variable, which is listed first and takes precedence
        found.setdefault(name.rpartition(".")[2], value.strip("'\""))
    mounts = []
    for value in found.values():
        for word in value.replace("\\n", " ").split():
            # the pages of an index in a folder link to files beside it
            path = Path(word.removeprefix("file://")).parent if word.startswith("file://") else Path(word)
            if path.is_absolute() and path.exists():
                mounts.append(f"{path}:{path}:ro")
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in found.items()))
    return [f"{file}:/etc/pip.conf:ro", *sorted(set(mounts))]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout

"""Uploads of servers that were killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from latentfarm.server.api.upload import Upload, remove_abandoned

pytestmark = pytest.mark.unit


def test_only_uploads_whose_server_has_ended_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    running = Upload()
    running.begin("x/" + "é" * 300 + ".jsonl")
    running.add(b"{}")
    killed = tmp_path / "latentfarm-upload-killed"
    killed.mkdir()
    (killed / "lock").touch()
    os.utime(killed, (0, 0))
    remove_abandoned(tmp_path, now_s=time.time() + 3_600)
    assert not killed.exists()
    assert running.path is not None
    running.path = running.path.with_name("prompts.jsonl")
    running.write()
    assert running.path.read_bytes() == b"{}"
    running.remove()
    assert list(tmp_path.iterdir()) == []

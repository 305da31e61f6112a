"""Hostile models: pickles, code and unwanted downloads are refused."""

from __future__ import annotations

import ast
import json
import pickle
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from tests.conftest import REPOSITORY
from tests.support.tiny import make_tiny

from latentfarm.errors import ModelError
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "model")


def load(source: Path | str) -> None:
    load_family(source, dtype=torch.float32, device=torch.device("cpu"))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


class Touch:
    """Creates a file when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("extension", [".bin", ".ckpt", ".pt"])
def test_pickled_weights_are_refused_without_unpickling(model: Path, part: str, extension: str) -> None:
    [weights] = (model / part).glob("*.safetensors")
    weights.unlink()
    trap = model / "trap"
    weights.with_suffix(extension).write_bytes(pickle.dumps(Touch(trap)))
    with pytest.raises(ModelError, match=r"latentfarm loads safetensors only"):
        load(model)
    assert not trap.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"_class_name": ["my_pipeline", "MyPipeline"]},
        {"unet": ["my_unet", "MyUNet"]},
        {"text_encoder": ["os", "system"]},
    ],
)
def test_a_model_with_its_own_pipeline_or_part_is_refused(model: Path, fields: dict[str, Any]) -> None:
    for name in ("my_pipeline.py", "unet/my_unet.py"):
        (model / name).write_text(f"open({str(model / 'trap')!r}, 'w')")
    edit(model / "model_index.json", **fields)
    with pytest.raises(ModelError, match="runs no code from a model"):
        load(model)
    assert not (model / "trap").exists()


@pytest.mark.parametrize("config", ["text_encoder/config.json", "unet/config.json", "tokenizer/tokenizer_config.json"])
def test_a_model_with_remote_code_is_refused(model: Path, config: str) -> None:
    edit(model / config, auto_map={"AutoModel": "evil.Model", "AutoTokenizer": ["evil.T", None]})
    with pytest.raises(ModelError, match="auto_map names custom code"):
        load(model)


def test_an_offline_worker_makes_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        load("no-such-owner/no-such-model")


def test_no_call_trusts_a_models_code() -> None:
    for file in (REPOSITORY / "worker").rglob("*.py"):
        called = {keyword.arg for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
                  for keyword in node.keywords}  # fmt: skip
        assert not called & {"trust_remote_code", "custom_pipeline"}, file.name

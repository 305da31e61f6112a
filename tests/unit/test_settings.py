"""Settings come from the environment, and give another process the same values."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from latentfarm.errors import InputError
from latentfarm.settings import Settings

pytestmark = pytest.mark.unit

OTHERS = {
    "redis_url": "redis://:secret@farm:6379",
    "allow_insecure_redis": True,
    "bucket": "b",
    "s3_endpoint_url": "http://s3:9000",
    "s3_access_key": "key",
    "s3_secret_key": SecretStr("secret"),
    "s3_path_style": False,
    "model": "sd14",
    "model_source": "CompVis/stable-diffusion-v1-4",
    "models": "sd14=CompVis/stable-diffusion-v1-4; mini=mini",
    "model_turn_s": 30.0,
    "model_memory_gb": 40.0,
    "text_encoder": "offload",
    "text_encoder_quantization": "nf4",
    "embedding_cache_bytes": 2**30,
    "adapters": "style=/adapters/style.safetensors,s3://adapters/loras",
    "adapter_cache_bytes": 2**34,
    "adapter_memory_bytes": 2**32,
    "input_hosts": "*.example.org",
    "input_allow_private": True,
    "safety": "score",
    "safety_checker": "/models/safety",
    "clip_scorer": "/models/clip",
    "dtype": "float16",
    "devices": "cpu:2",
    "slots": 7,
    "micro_batch": 16,
    "quantization": "fp8",
    "deterministic": False,
    "compile": False,
    "cache_dir": Path("/cache"),
    "lease_ttl_s": 10.5,
    "housekeeping_interval_s": 1.0,
    "shutdown_timeout_s": 50.0,
    "stall_timeout_s": 60.0,
    "spot_provider": "aws",
    "metadata_url": "http://metadata",
    "embed_metadata": False,
    "metrics_address": "127.0.0.1:9464",
    "log_format": "json",
    "celery_remote_control": True,
    "webhook_secret": SecretStr("whsec_c2VjcmV0"),
    "webhook_allow_private": True,
}


def test_another_process_has_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(OTHERS) == set(Settings.model_fields)
    settings = Settings().model_copy(update=OTHERS)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_only_settings_that_were_set_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATENTFARM_CACHE_DIR")
    monkeypatch.setenv("LATENTFARM_SLOTS", "0")
    # an empty text is passed on too: the environment of the other process may have another value
    settings = Settings().model_copy(update={"model_source": "", "compile": None})
    assert settings.environment() == {"LATENTFARM_SLOTS": "0", "LATENTFARM_MODEL_SOURCE": ""}


def test_an_argument_takes_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTFARM_SLOTS", "3")
    assert (Settings().slots, Settings(slots=4).slots) == (3, 4)


def test_the_documented_defaults_are_the_real_ones() -> None:
    [definition] = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(definition, ast.ClassDef)
    documented = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            documented[field.target.id] = re.search(r"\[default: ([^],]+)[],]", str(text.value.value))
    assert set(documented) == set(Settings.model_fields)
    # words for an empty text or None, such as "one worker", are not compared
    real = {name: field.default for name, field in Settings.model_fields.items() if field.default not in ("", None)}
    del real["cache_dir"], real["s3_secret_key"], real["webhook_secret"]
    found = {name: match[1] for name in real if (match := documented[name])}
    assert found == {name: str(value).lower().removesuffix(".0") for name, value in real.items()}


def test_redis_without_a_bucket_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTFARM_REDIS_URL", "redis://localhost")
    with pytest.raises(InputError, match="LATENTFARM_BUCKET is not set"):
        Settings.load(tmp_path)


def test_the_error_for_an_invalid_setting_has_its_name_and_value(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LATENTFARM_LEASE_TTL_S", "soon")
    with pytest.raises(InputError, match="LATENTFARM_LEASE_TTL_S is 'soon'"):
        Settings.load(tmp_path)

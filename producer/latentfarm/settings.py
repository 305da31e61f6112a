"""Where the farm's Redis and bucket are, and the knobs of a worker: from the environment, else from a running ``up``.

The variables are ``LATENTFARM_*`` (each field's name in capitals) and the usual ``AWS_*`` of the object store.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from latentfarm.errors import InputError
from latentfarm.job import check_model_alias

#: the folder, below the working directory, in which ``latentfarm up`` keeps its Redis, its bucket and its logs
LOCAL_FOLDER = Path(".latentfarm")
#: inside it: how to reach the farm that runs there, readable by its owner only
FARM_FILE = "farm.json"

DEFAULT_MODEL = "mini"


class Settings(BaseSettings):
    """Frozen settings, checked when they are made; every field can be set by ``LATENTFARM_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix="LATENTFARM_", frozen=True, extra="ignore")

    redis_url: str = ""
    """``redis://``, ``rediss://`` or ``unix://``; the ledger and the doorbells live there."""
    bucket: str = ""
    """The bucket's name; it is not created unless it belongs to ``latentfarm up``."""
    s3_endpoint_url: Annotated[str, Field(validation_alias="AWS_ENDPOINT_URL")] = ""
    """Empty for AWS itself."""
    s3_access_key: Annotated[str, Field(validation_alias="AWS_ACCESS_KEY_ID")] = ""
    s3_secret_key: Annotated[SecretStr, Field(validation_alias="AWS_SECRET_ACCESS_KEY")] = SecretStr("")
    s3_path_style: bool | None = None
    """Address buckets by path; None: by path wherever the endpoint is not AWS."""

    model: Annotated[str, AfterValidator(check_model_alias)] = DEFAULT_MODEL
    """The alias of the model that a worker serves; its queue is ``render.<alias>``."""
    model_source: str = ""
    """A diffusers folder or a hub id; empty for the bundled model."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """auto: float32 on a CPU, float16 on a GPU."""
    slots: Annotated[int, Field(ge=0, le=256)] = 0
    """Guided images in the U-Net's batch at once; 0: 8 on a CPU, 16 on a GPU."""
    lease_s: Annotated[float, Field(ge=1, le=3600)] = 30.0
    """Seconds after which the jobs of a silent worker run elsewhere."""
    sweep_s: Annotated[float, Field(gt=0, le=60)] = 3.0
    """Seconds between two looks of a worker at expired leases."""
    embed_metadata: bool = True
    """Write the prompt and the settings into each PNG."""

    webhook_secret: SecretStr = SecretStr("")
    """``whsec_`` and base64 of 24 to 64 bytes: what a worker signs webhooks with."""
    webhook_allow_private: bool = False
    """Let webhooks go to addresses that are not globally routable."""

    @property
    def configured(self) -> bool:
        """Whether both the queue and the store are known."""
        return bool(self.redis_url and self.bucket)

    @classmethod
    def load(cls, folder: Path = LOCAL_FOLDER) -> Self:
        """Read the environment, and for what it leaves open the farm that ``latentfarm up`` runs in ``folder``.

        Raises:
            InputError: a value is not allowed, or only one of queue and store is named.
        """
        try:
            settings = cls()
        except ValidationError as error:
            raise InputError(_explain(error)) from None
        if settings.configured:
            return settings
        if settings.redis_url or settings.bucket:
            missing = "LATENTFARM_BUCKET" if settings.redis_url else "LATENTFARM_REDIS_URL"
            raise InputError(f"{missing} is not set; a farm needs LATENTFARM_REDIS_URL and LATENTFARM_BUCKET")
        file = folder / FARM_FILE
        if not file.exists():
            return settings
        return settings.model_copy(update=_local_fields(file))

    def environment(self) -> dict[str, str]:
        """Return the variables that make another process reach the same farm."""
        known = {
            "LATENTFARM_REDIS_URL": self.redis_url,
            "LATENTFARM_BUCKET": self.bucket,
            "AWS_ENDPOINT_URL": self.s3_endpoint_url,
            "AWS_ACCESS_KEY_ID": self.s3_access_key,
            "AWS_SECRET_ACCESS_KEY": self.s3_secret_key.get_secret_value(),
        }
        # the model is said in full, so that the caller's own environment cannot mix with it
        return {
            **{name: value for name, value in known.items() if value},
            "LATENTFARM_MODEL": self.model,
            "LATENTFARM_MODEL_SOURCE": self.model_source,
            "LATENTFARM_DTYPE": self.dtype,
            "LATENTFARM_SLOTS": str(self.slots),
        }

    def require(self) -> Self:
        """Return the settings.

        Raises:
            InputError: no farm is named and none runs here.
        """
        if not self.configured:
            raise InputError(
                "no farm: set LATENTFARM_REDIS_URL and LATENTFARM_BUCKET, or start one here with `latentfarm up`"
            )
        return self


def _local_fields(file: Path) -> dict[str, object]:
    fields = json.loads(file.read_text())
    return {**fields, "s3_secret_key": SecretStr(fields["s3_secret_key"])}


def write_farm_file(file: Path, settings: Settings) -> None:
    """Leave word of a local farm for the commands run beside it."""
    fields = settings.model_dump(include={"redis_url", "bucket", "s3_endpoint_url", "s3_access_key"})
    fields["s3_secret_key"] = settings.s3_secret_key.get_secret_value()
    fresh = file.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        json.dump(fields, out)
    fresh.replace(file)


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        field = str(problem["loc"][0]) if problem["loc"] else "settings"
        name = field if field.isupper() else f"LATENTFARM_{field.upper()}"
        lines.append(f"{name} is {problem['input']!r}: {problem['msg']}")
    return "\n".join(lines)

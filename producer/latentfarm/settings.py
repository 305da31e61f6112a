"""Where the farm's Redis and bucket are, and the knobs of a worker: from the environment, else from a running ``up``.

The variables are ``LATENTFARM_*`` (each field's name in capitals) and the usual ``AWS_*`` of the object store.
"""

from __future__ import annotations

import json
import logging
import os
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.connection import parse_url

from latentfarm.errors import InputError
from latentfarm.job import check_model_alias
from latentfarm.monitoring import logs

log = logging.getLogger(__name__)

#: the folder, below the working directory, in which ``latentfarm up`` keeps its Redis, its bucket and its logs
LOCAL_FOLDER = Path(".latentfarm")
#: inside it: how to reach the farm that runs there, readable by its owner only
FARM_FILE = "farm.json"

DEFAULT_MODEL = "mini"


class Settings(BaseSettings):
    """Frozen settings, checked when they are made; every field can be set by ``LATENTFARM_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix="LATENTFARM_", frozen=True, extra="ignore")

    redis_url: Annotated[str, Field(repr=False)] = ""
    """``redis://``, ``rediss://`` or ``unix://``; the ledger and the doorbells live there. It may hold a password."""
    allow_insecure_redis: bool = False
    """Use a Redis on another machine that has neither password nor TLS."""
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
    devices: str = ""
    """A supervised worker for each: ``all`` GPUs, ``cpu:N``, or GPUs such as ``0,1``; empty: one worker."""
    slots: Annotated[int, Field(ge=0, le=256)] = 0
    """Guided images in the U-Net's batch at once; 0: what makes this device fastest, measured at the first start."""
    exactness: Literal["fixed", "free"] = "fixed"
    """fixed: a job's bytes do not depend on its neighbours; free: any number of rows, and bytes vary a bit."""
    compile: bool | None = None
    """Compile the U-Net for the slots' number of rows; None: on a GPU only."""
    cache_dir: Path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentfarm"
    """Where a worker remembers what it measured and compiled."""
    lease_s: Annotated[float, Field(ge=1, le=3600)] = 30.0
    """Seconds after which the jobs of a silent worker run elsewhere."""
    sweep_s: Annotated[float, Field(gt=0, le=60)] = 3.0
    """Seconds between two looks of a worker at expired leases."""
    drain_s: Annotated[float, Field(ge=1, le=3600)] = 25.0
    """Seconds from a worker's being asked to end to its end."""
    hang_s: Annotated[float, Field(ge=1, le=86_400)] = 120.0
    """Seconds without a step after which a worker is killed; the first step of a shape may compile."""
    spot: Literal["", "aws"] = ""
    """Whose notices of spot instances' ends a worker looks for."""
    metadata_url: Annotated[str, Field(validation_alias="AWS_EC2_METADATA_SERVICE_ENDPOINT")] = "http://169.254.169.254"
    """Where AWS tells an instance about itself."""
    embed_metadata: bool = True
    """Write the prompt and the settings into each picture."""

    metrics_address: str = ""
    """``HOST:PORT`` of a worker's or the exporter's /metrics, /livez and /readyz; empty: a worker serves none."""
    log_format: logs.Format = "auto"
    """text: lines for people; json: for a collector; auto: text on a terminal, else json."""

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
        if self.allow_insecure_redis:
            known["LATENTFARM_ALLOW_INSECURE_REDIS"] = "true"
        if self.log_format != "auto":
            known[logs.VARIABLE] = self.log_format
        if self.compile is not None:
            known["LATENTFARM_COMPILE"] = str(self.compile).lower()
        return {
            **{name: value for name, value in known.items() if value},
            "LATENTFARM_MODEL": self.model,
            "LATENTFARM_MODEL_SOURCE": self.model_source,
            "LATENTFARM_DTYPE": self.dtype,
            "LATENTFARM_SLOTS": str(self.slots),
            "LATENTFARM_EXACTNESS": self.exactness,
        }

    def require(self) -> Self:
        """Return the settings.

        Raises:
            InputError: no farm is named and none runs here, or its Redis is open to a network.
        """
        if not self.configured:
            raise InputError(
                "no farm: set LATENTFARM_REDIS_URL and LATENTFARM_BUCKET, or start one here with `latentfarm up`"
            )
        problem = redis_problem(self.redis_url)
        if problem and problem.fatal and not self.allow_insecure_redis:
            raise InputError(problem.text)
        if problem and not problem.fatal and not self.allow_insecure_redis:
            _warn(problem.text)
        return self


class RedisProblem(NamedTuple):
    """Why a Redis URL is not safe; ``fatal`` where nothing at all keeps strangers out."""

    text: str
    fatal: bool


def redis_problem(url: str) -> RedisProblem | None:
    """Return what is not safe about the Redis at ``url``, None if nothing; no password is ever in the text.

    Over a unix socket or the loopback interface all is well. Elsewhere a password or TLS that checks the certificate is
    the least. A host name is not looked up: it may lead elsewhere the next time.

    Raises:
        InputError: it is no URL of a Redis.
    """
    try:
        # what the ledger's own client will make of it, its query included
        parts = parse_url(url)  # type: ignore[no-untyped-call]
        port = int(parts.get("port", 6379))
    except ValueError:
        raise InputError(
            "LATENTFARM_REDIS_URL is no URL of a Redis (it is not shown, for it may hold a password): write "
            "redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH, the password percent-encoded"
        ) from None
    host = str(parts.get("host", "localhost"))
    if url.startswith("unix://") or _is_loopback(host):
        return None
    checked = parts.get("ssl_cert_reqs", "required") == "required" and parts.get("ssl_check_hostname", True)
    tls, password = url.startswith("rediss://") and checked, parts.get("password")
    place = f"LATENTFARM_REDIS_URL leads to {host} port {port}"
    if not tls and not password:
        return RedisProblem(
            f"{place} with neither password nor verified TLS: whoever reaches it could read and change every batch. "
            "Write rediss://USER:PASSWORD@HOST:PORT, or set LATENTFARM_ALLOW_INSECURE_REDIS=true where the network "
            "itself keeps strangers out",
            fatal=True,
        )
    if not tls:
        return RedisProblem(
            f"{place} without verified TLS: the password and all else travel in clear. Write rediss://, or set "
            "LATENTFARM_ALLOW_INSECURE_REDIS=true where the network itself keeps listeners out",
            fatal=False,
        )
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@cache
def _warn(text: str) -> None:
    """Warn once a process: every command asks for its settings more than once."""
    log.warning("%s", text)


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

"""The settings: how to reach Redis and the bucket, and how a worker runs.

They come from the environment: ``LATENTFARM_*``, each field's name in capitals, and the usual ``AWS_*`` variables. If
Redis and the bucket are not set, the farm that ``latentfarm up`` runs in the working directory is used.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from latentfarm.edit_fields import Safety
from latentfarm.errors import InputError
from latentfarm.farm_folder import FarmFolder
from latentfarm.monitoring import logs
from latentfarm.names import DEFAULT_MODEL, check_model_alias

log = logging.getLogger(__name__)

#: where ``latentfarm up`` keeps its Redis data, its bucket and its logs, below the working directory
LOCAL_FOLDER = Path(".latentfarm")

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
Quantization = Literal["none", "fp8", "nf4"]
TextEncoder = Literal["auto", "resident", "offload", "cpu"]
TextEncoderQuantization = Literal["none", "nf4"]


class Settings(BaseModel):
    """Immutable, validated settings. A field that is not passed is read from its environment variable."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    redis_url: Annotated[str, Field(repr=False)] = ""
    """Redis of the ledger and of the doorbells, as ``RedisAddress`` reads it. It may hold a password."""
    allow_insecure_redis: bool = False
    """Allow a remote Redis with neither password nor TLS [default: false]."""
    bucket: str = ""
    """The bucket's name. It must exist: only ``latentfarm up`` creates one."""
    s3_endpoint_url: Annotated[str, Field(validation_alias="AWS_ENDPOINT_URL")] = ""
    """URL of the object store [default: AWS]."""
    s3_access_key: Annotated[str, Field(validation_alias="AWS_ACCESS_KEY_ID")] = ""
    """Access key [default: any other source that boto3 knows]."""
    s3_secret_key: Annotated[SecretStr, Field(validation_alias="AWS_SECRET_ACCESS_KEY")] = SecretStr("")
    """Secret key [default: any other source that boto3 knows]."""
    s3_path_style: bool | None = None
    """Address buckets by path [default: true unless the store is AWS]."""

    model: Annotated[str, AfterValidator(check_model_alias)] = DEFAULT_MODEL
    """Alias of the model that a worker serves, from the queue ``render.<alias>`` [default: mini]."""
    model_source: str = ""
    """Diffusers folder, file or hub id [default: the bundled model]."""
    models: str = ""
    """Several models of one worker: ``ALIAS=SOURCE`` of each, separated by semicolons; the first takes the place of
    ``LATENTFARM_MODEL`` [default: that one alone]."""
    model_turn_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """Seconds after which a model of several gives way to one that waits [default: 60]."""
    model_memory_gb: Annotated[float, Field(ge=0)] = 0.0
    """Gigabytes (10^9 bytes) of weights of several models that are on the device at once [default: 0, six tenths of
    the memory that is free at the start]."""
    dtype: Dtype = "auto"
    """Floating-point type of the model [default: auto, float32 on a CPU, float16 on a GPU, bfloat16 if quantized]."""
    quantization: Quantization = "none"
    """``fp8``: the denoising model's blocks in FP8, faster on a GPU of compute capability 8.9 or more; ``nf4``: their
    weights in four bits, a quarter of the memory. Images change [default: none]."""
    text_encoder: TextEncoder = "auto"
    """``resident``: the text encoders stay on the device; ``offload``: they are there only while prompts are encoded;
    ``cpu``: they compute on the host [default: auto, the first of them for which the device has memory]."""
    text_encoder_quantization: TextEncoderQuantization = "none"
    """``nf4``: the weights of T5 and Qwen3 in four bits; images change [default: none]."""
    embedding_cache_bytes: Annotated[int, Field(ge=0)] = 4 * 1024**3
    """Bytes of encoded prompts in the folder ``embeddings`` of the cache; 0 for none [default: 4294967296]."""
    adapters: str = ""
    """LoRAs, embeddings, ControlNets, IP-Adapters and refiners, between commas: ``ALIAS=SOURCE`` of each, and folders
    or ``s3://BUCKET/PREFIX`` with many; a source is a file, folder, ``s3://BUCKET/KEY`` or a hub id [default: none]."""
    adapter_cache_bytes: Annotated[int, Field(ge=0)] = 32 * 1024**3
    """Bytes of adapters fetched from a bucket, in the folder ``adapters`` of the cache [default: 34359738368]."""
    adapter_memory_bytes: Annotated[int, Field(ge=0)] = 8 * 1024**3
    """Bytes of ControlNets, IP-Adapters and refiners on the device; those used longest ago go [default: 8589934592]."""
    safety: Safety = "off"
    """The least that is done with each image: ``score`` records scores of unsafe concepts in results, ``refuse`` fails
    a job whose image has one; a job may want more [default: off]."""
    safety_checker: str = ""
    """Safety checker: a folder, a model's folder with one, or a hub id [default: the one in the model's folder]."""
    clip_scorer: str = ""
    """Folder of a CLIP model, with which workers have the scorer ``clip`` [default: none]."""
    devices: str = ""
    """One supervised worker for each: ``all`` GPUs, ``cpu:N``, or GPUs such as ``0,1`` [default: one worker]."""
    slots: Annotated[int, Field(ge=0, le=256)] = 0
    """Guided images denoised at once [default: 0, those of one micro-batch, on a GPU of two]."""
    micro_batch: Annotated[int, Field(ge=0, le=512, multiple_of=2)] = 0
    """Rows of one call of the model; an image's bytes depend on it [default: 0, measured at the first start]."""
    deterministic: bool = True
    """Make a job's bytes independent of its neighbours; if false, no micro-batch is padded [default: true]."""
    compile: bool | None = None
    """Compile the U-Net and the VAE's decoder for the native size [default: true on a GPU]."""
    cache_dir: Path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentfarm"
    """Folder for calibration results and compiled code [default: ~/.cache/latentfarm]."""
    lease_ttl_s: Annotated[float, Field(ge=1, le=3600)] = 30.0
    """Seconds until the jobs of a silent worker run elsewhere [default: 30]."""
    housekeeping_interval_s: Annotated[float, Field(gt=0, le=60)] = 3.0
    """Seconds between a worker's checks for expired leases [default: 3]."""
    shutdown_timeout_s: Annotated[float, Field(ge=1, le=3600)] = 25.0
    """Seconds from a stop request to a worker's exit [default: 25]."""
    stall_timeout_s: Annotated[float, Field(ge=1, le=86_400)] = 120.0
    """Seconds without a step until a worker is killed; the first step of a shape may compile [default: 120]."""
    spot_provider: Literal["", "aws"] = ""
    """Cloud whose termination notices of spot instances a worker polls: ``aws`` [default: none]."""
    metadata_url: Annotated[str, Field(validation_alias="AWS_EC2_METADATA_SERVICE_ENDPOINT")] = "http://169.254.169.254"
    """URL of the instance metadata service [default: http://169.254.169.254]."""
    embed_metadata: bool = True
    """Write the prompt and the job's settings into each image [default: true]."""

    metrics_address: str = ""
    """``HOST:PORT`` of /metrics, /livez and /readyz [default: none for a worker, 127.0.0.1:9465 for the exporter]."""
    log_format: logs.Format = "auto"
    """``text``, ``json`` or ``auto`` [default: auto, text on a terminal and json otherwise]."""

    celery_remote_control: bool = False
    """Let workers answer Celery's own tools, such as ``celery inspect`` and flower [default: false]."""

    webhook_secret: SecretStr = SecretStr("")
    """Key with which workers sign webhooks: ``whsec_`` and the base64 of 24 to 64 bytes [default: none]."""
    webhook_allow_private: bool = False
    """Allow webhooks to addresses that are not globally routable [default: false]."""

    input_hosts: str = ""
    """Hosts of the https URLs of input images, separated by commas: names, ``*.example.org``, or ``*`` for every
    public host [default: none]."""
    input_allow_private: bool = False
    """Allow these hosts to have addresses that are not globally routable [default: false]."""

    @model_validator(mode="before")
    @classmethod
    def _read_environment(cls, given: dict[str, Any]) -> dict[str, Any]:
        found = {key: os.environ[name] for key, name in _variables().values() if name in os.environ}
        return found | given

    @property
    def configured(self) -> bool:
        """Whether both Redis and the bucket are set."""
        return bool(self.redis_url and self.bucket)

    @classmethod
    def load(cls, folder: Path = LOCAL_FOLDER, *, use: bool = False) -> Self:
        """Return the settings of the environment, else those of the farm that runs in ``folder``.

        Args:
            folder: The folder of a local farm.
            use: Keep that farm until this process ends: the ``render`` that started it waits.

        Raises:
            InputError: A value is invalid, only one of Redis and bucket is set, or the folder cannot be read.
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
        local = FarmFolder(folder)
        fields = local.use() if use else local.read()
        if fields is None:
            return settings
        return settings.model_copy(update={**fields, "s3_secret_key": SecretStr(fields["s3_secret_key"])})

    def local_fields(self) -> dict[str, Any]:
        """Return how to reach a local farm, for the other commands in its folder."""
        fields = self.model_dump(include={"redis_url", "bucket", "s3_endpoint_url", "s3_access_key"})
        return {**fields, "s3_secret_key": self.s3_secret_key.get_secret_value()}

    def environment(self) -> dict[str, str]:
        """Return the variables that give another process the same settings: those of all fields that were set."""
        values = ((_variables()[field][1], getattr(self, field)) for field in self.model_fields_set)
        return {name: _to_text(value) for name, value in values if value is not None}

    def require(self) -> Self:
        """Return the settings if they name a farm whose Redis is protected.

        Raises:
            InputError: No farm is set and none runs here, or its Redis is open to a network.
        """
        if not self.configured:
            local = FarmFolder(LOCAL_FOLDER)
            if local.runs():
                raise InputError(f"the farm in {LOCAL_FOLDER} is starting or stopping; run the command again")
            if local.has_data():
                raise InputError(
                    f"no farm runs in {LOCAL_FOLDER}, which has the data of an earlier one: `latentfarm up` continues"
                )
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
    """Why a Redis URL is not safe. ``fatal``: neither a password nor TLS protects it."""

    text: str
    fatal: bool


def redis_problem(url: str) -> RedisProblem | None:
    """Return why the Redis at ``url`` is not safe, or None. The text never contains a password.

    A unix socket or the loopback interface is safe. Elsewhere a password or verified TLS is required. A host name is
    not resolved, because it may resolve to another address the next time.

    Raises:
        InputError: It is not a URL of a Redis.
    """
    from latentfarm.redis_address import RedisAddress  # slow to import, and not needed for the settings' values

    address = RedisAddress.parse(url)
    remote = [f"{host} port {port}" for host, port in address.hosts if not _is_loopback(host)]
    if not remote:
        return None
    options = address.options
    checked = options.get("ssl_cert_reqs", "required") == "required" and options.get("ssl_check_hostname", True)
    tls, password = address.tls and checked, options.get("password")
    place = f"LATENTFARM_REDIS_URL leads to {', '.join(remote)}"
    scheme = "rediss+sentinel" if address.service else "rediss"
    if not tls and not password:
        return RedisProblem(
            f"{place} with neither password nor verified TLS: any client can read and change every "
            f"batch. Write {scheme}://USER:PASSWORD@HOST:PORT. If the network itself is private, set "
            "LATENTFARM_ALLOW_INSECURE_REDIS=true",
            fatal=True,
        )
    if not tls:
        return RedisProblem(
            f"{place} without verified TLS: the password and all data travel unencrypted. Write {scheme}://. If the "
            "network itself is private, set LATENTFARM_ALLOW_INSECURE_REDIS=true",
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
    # once a process: a command reads its settings more than once
    log.warning("%s", text)


@cache
def _variables() -> dict[str, tuple[str, str]]:
    """Return the key and the environment variable of each field."""
    found = {}
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        found[name] = (alias, alias) if isinstance(alias, str) else (name, f"LATENTFARM_{name.upper()}")
    return found


def _to_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value).lower() if isinstance(value, bool) else str(value)


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        field = str(problem["loc"][0]) if problem["loc"] else "settings"
        name = field if field.isupper() else f"LATENTFARM_{field.upper()}"
        lines.append(f"{name} is {problem['input']!r}: {problem['msg']}")
    return "\n".join(lines)

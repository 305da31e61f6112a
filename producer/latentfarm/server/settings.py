"""The settings of the server, from the environment: ``LATENTFARM_SERVER_*`` and ``LATENTFARM_API_KEYS_FILE``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from latentfarm.errors import InputError
from latentfarm.monitoring.listen_address import parse_address

_PREFIX = "LATENTFARM_SERVER_"
_KEYS_VARIABLE = "LATENTFARM_API_KEYS_FILE"


def _check_address(text: str) -> str:
    parse_address(text, name=f"{_PREFIX}ADDRESS")
    return text


class ServerSettings(BaseModel):
    """Immutable, validated settings. A field that is not passed is read from its environment variable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: Annotated[str, AfterValidator(_check_address)] = "127.0.0.1:7860"
    """``HOST:PORT`` to serve [default: 127.0.0.1:7860]. Any address but a loopback one needs keys."""
    api_keys_file: Path | None = None
    """File of API keys, a line ``name:sha256:scopes`` each, read again when it changes [default: none]."""
    allowed_hosts: str = ""
    """Names in the Host header that are accepted besides the address, separated by commas [default: none]."""
    trusted_proxies: str = ""
    """Addresses or networks of proxies whose ``X-Forwarded-For`` names the client, separated by commas [default: none].
    """
    default_model: str = ""
    """Model of requests that name none, or one of OpenAI's [default: the only one with workers]."""
    max_body_bytes: Annotated[int, Field(ge=1_024)] = 1_048_576
    """Bytes of a request's body, files excepted [default: 1048576]."""
    max_image_body_bytes: Annotated[int, Field(ge=1_024)] = 67_108_864
    """Bytes of the body of a request that sends images, such as an edit [default: 67108864]."""
    max_file_bytes: Annotated[int, Field(ge=1_024)] = 8 * 1024**3
    """Bytes of an uploaded file [default: 8589934592]."""
    max_batch_lines: Annotated[int, Field(ge=1)] = 1_000_000
    """Lines of a file that is rendered as one batch by OpenAI's protocol [default: 1000000]."""
    max_pending_images: Annotated[int, Field(ge=1)] = 1_000
    """Images that clients of the farm wait for; beyond it the answer is 429 [default: 1000]."""
    max_pending_images_per_key: Annotated[int, Field(ge=1)] = 200
    """Images that the clients of one key wait for [default: 200]."""
    requests_per_minute: Annotated[int, Field(ge=1)] = 1_200
    """Requests of one key in a minute, at one server, but for images [default: 1200]."""
    images_per_minute: Annotated[int, Field(ge=1)] = 12_000
    """Images, thumbnails and previews that one key requests in a minute, at one server [default: 12000]."""
    max_connections: Annotated[int, Field(ge=8)] = 1_000
    """Connections, and requests at once, of one server; beyond it the longest idle one is closed [default: 1000]."""
    shutdown_timeout_s: Annotated[float, Field(ge=1, le=3_600)] = 25.0
    """Seconds that running requests may take after a stop request [default: 25]."""
    worker_wait_s: Annotated[float, Field(ge=0, le=3_600)] = 30.0
    """Seconds until the answer is 503 if no worker serves the model [default: 30]."""
    render_timeout_s: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    """Seconds until a request for images ends with 504 and its images are cancelled [default: 600]."""
    keep_s: Annotated[int, Field(ge=60)] = 86_400
    """Seconds that images of such requests are kept in the bucket [default: 86400, a day]."""
    url_expires_s: Annotated[int, Field(ge=1, le=604_800)] = 86_400
    """Seconds that URLs of images are valid [default: 86400, a day]."""
    thumbnail_cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentfarm-thumbnails"
    """Folder for thumbnails [default: ~/.cache/latentfarm-thumbnails]."""
    thumbnail_cache_bytes: Annotated[int, Field(ge=1_048_576)] = 1024**3
    """Bytes of that folder; the thumbnails unused for longest are removed [default: 1073741824]."""

    @model_validator(mode="before")
    @classmethod
    def _read_environment(cls, given: dict[str, Any]) -> dict[str, Any]:
        found = {name: os.environ[variable] for name, variable in variables().items() if variable in os.environ}
        return found | given

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Return the settings.

        Raises:
            InputError: a value is invalid.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            names = variables()
            lines = [f"{names[str(each['loc'][0])]} is {each['input']!r}: {each['msg']}" for each in error.errors()]
            raise InputError("\n".join(lines)) from None


def variables() -> dict[str, str]:
    """Return the environment variable of each field."""
    return {
        name: _KEYS_VARIABLE if name == "api_keys_file" else f"{_PREFIX}{name.upper()}"
        for name in ServerSettings.model_fields
    }

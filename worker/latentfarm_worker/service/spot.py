"""Poll AWS for spot interruption notices, which come two minutes ahead at best.

A notice only gives time to finish jobs. Without one, a lost instance is handled like any killed worker.
"""

from __future__ import annotations

import http.client
import json
import logging
from collections.abc import Callable
from urllib.parse import urlsplit

from latentfarm_worker.service.threads import Threads

log = logging.getLogger(__name__)

_TOKEN_PATH, _NOTICE_PATH = "/latest/api/token", "/latest/meta-data/spot/instance-action"
_TOKEN_TTL_S = 21_600
_TIMEOUT_S = 2.0
_POLL_S = 5.0


class MetadataError(Exception):
    """The metadata service is unavailable, or its answer is invalid."""


class InstanceMetadata:
    """AWS's instance metadata service, version 2, at ``url``. Requests never use a proxy."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._base = parts.path.rstrip("/")
        self._token = ""

    def notice(self) -> str | None:
        """Return the announced action on this instance and its time, or None.

        Raises:
            MetadataError: The service is unavailable, or its answer is invalid.
        """
        status, body = self._request("GET", _NOTICE_PATH, {"X-aws-ec2-metadata-token": self._token})
        if status == http.client.UNAUTHORIZED:
            self._token = self._new_token()
            status, body = self._request("GET", _NOTICE_PATH, {"X-aws-ec2-metadata-token": self._token})
        if status == http.client.NOT_FOUND:
            return None
        if status != http.client.OK:
            raise MetadataError(f"{_NOTICE_PATH} answers {status}")
        try:
            found = json.loads(body)
            return f"{found['action']} at {found['time']}"
        except (ValueError, TypeError, KeyError) as error:
            raise MetadataError(f"{_NOTICE_PATH} answers {body[:100]!r}") from error

    def _new_token(self) -> str:
        ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)}
        status, body = self._request("PUT", _TOKEN_PATH, ttl)
        if status != http.client.OK:
            raise MetadataError(f"{_TOKEN_PATH} answers {status}")
        return body.decode("latin-1").strip()

    def _request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, self._base + path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(10_000)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise MetadataError(f"{self._host}:{self._port} does not answer: {error}") from error
        finally:
            connection.close()


class SpotWatch:
    """Poll for a notice every ``poll_s`` seconds on a thread of its own, and call ``on_notice`` once."""

    def __init__(
        self, metadata: InstanceMetadata, on_notice: Callable[[], None], *, threads: Threads, poll_s: float = _POLL_S
    ) -> None:
        self._metadata = metadata
        self._on_notice = on_notice
        self._logged = ""
        self._noticed = False
        self._loop = threads.loop("spot", self._poll, interval_s=poll_s)

    def close(self) -> None:
        """Stop polling."""
        self._loop.stop()

    def _poll(self) -> None:
        if self._noticed:
            return
        try:
            notice = self._metadata.notice()
        except MetadataError as error:
            # once for each kind of error, not at each poll
            if str(error) != self._logged:
                self._logged = str(error)
                log.warning("no spot notices: %s", error)
            return
        if notice is not None:
            log.warning("this instance will be interrupted: %s", notice)
            self._on_notice()
            self._noticed = True

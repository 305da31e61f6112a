"""The checks that every operation passes before it runs."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn, cast

from starlette.requests import Request
from starlette.responses import Response

from latentfarm.errors import InputError
from latentfarm.ledger.ledger import Ledger
from latentfarm.monitoring.listen_address import parse_address
from latentfarm.server.http.operation import Operation, Rate, Scope
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.security.access import ANONYMOUS, LOCAL, Access, keep_access
from latentfarm.server.security.audit import write_audit
from latentfarm.server.security.client_address import ClientAddresses, network_of
from latentfarm.server.security.credentials import Credentials, credentials_of
from latentfarm.server.security.keys import ApiKey, KeyFile, match
from latentfarm.server.security.origins import HostCheck, check_not_forwarded, check_origin, is_loopback
from latentfarm.server.security.session import SessionSecret, csrf_token, find_session
from latentfarm.server.security.token_buckets import TokenBuckets
from latentfarm.server.settings import ServerSettings

log = logging.getLogger(__name__)

#: wrong keys of one address that are answered and logged in a minute, and addresses that are known at once
_WRONG_KEYS, _MAX_ADDRESSES = 20, 4_096
#: keys whose rate is known at once: more than a file has, because names change
_MAX_NAMES = 2_048
_SAFE = frozenset({"GET", "HEAD"})

#: runs a function that blocks
Runner = Callable[[Callable[[], bytes]], Awaitable[bytes]]


class Guard:
    """Admits requests to operations.

    Args:
        settings: of the server.
        ledger: has the secret of sessions.
        run: runs a function that blocks, on a thread.

    Raises:
        InputError: the address needs keys and there are none, or a setting is invalid. The message has the cure.
    """

    def __init__(self, settings: ServerSettings, ledger: Ledger, run: Runner) -> None:
        check_exposure(settings)
        self._file = KeyFile(settings.api_keys_file) if settings.api_keys_file else None
        self._hosts = HostCheck(settings.address, settings.allowed_hosts)
        self._addresses = ClientAddresses(settings.trusted_proxies)
        self._rates = {
            Rate.REQUESTS: TokenBuckets(settings.requests_per_minute, max_names=_MAX_NAMES),
            Rate.IMAGES: TokenBuckets(settings.images_per_minute, max_names=_MAX_NAMES),
        }
        self._wrong_keys = TokenBuckets(_WRONG_KEYS, max_names=_MAX_ADDRESSES)
        self._secret = SessionSecret(ledger)
        self._run = run

    @property
    def keyless(self) -> bool:
        """Whether everybody on this machine is admitted."""
        return self._file is None

    async def admit(self, request: Request, operation: Operation) -> None:
        """Check a request; ``access_of`` has its sender from then on.

        Raises:
            RequestError: 401, 403, 415, 421 or 429.
        """
        keep_access(request, ANONYMOUS)
        self._hosts.check(request.headers)
        _check_encoding(request)
        if self._file is None:
            check_not_forwarded(request.headers)
        # a request without a session may begin one
        if operation.scope is Scope.NONE:
            if request.method not in _SAFE:
                check_origin(request.method, request.headers)
            return
        access = LOCAL if self._file is None else await self._identify(request)
        keep_access(request, access)
        if self._file is None:
            check_origin(request.method, request.headers)
        elif wait_s := self._rates[operation.rate].take(access.name):
            sent = "requests for images" if operation.rate is Rate.IMAGES else "requests"
            raise RequestError(
                429, "too_many_requests", f"the key has sent too many {sent}; send fewer", retry_after_s=wait_s
            )
        if not access.allows(operation.scope):
            raise RequestError(
                403,
                "scope_missing",
                f"the key has not the scope {operation.scope}, which this operation needs; use another key",
            )

    def record(self, request: Request, operation: Operation, answer: Response) -> None:
        """Write the audit line of a request that was answered."""
        write_audit(request, operation, answer, self._addresses.of(request))

    async def _identify(self, request: Request) -> Access:
        sent = credentials_of(request)
        if not sent.explicit:
            check_origin(request.method, request.headers)
        if sent.cookie:
            return await self._of_session(request, sent)
        if not sent.secret:
            raise _no_key()
        return self.key_of(request, sent.secret).access

    async def _of_session(self, request: Request, sent: Credentials) -> Access:
        secret = await self.session_secret()
        key = find_session(secret, self.keys(), sent.cookie, now_s=time.time())
        if key is None:
            raise RequestError(401, "session_ended", "the session has ended; begin a new one with a key")
        if request.method not in _SAFE and not _same(
            request.headers.get("x-csrf-token", ""), csrf_token(secret, sent.cookie)
        ):
            raise RequestError(
                403, "csrf_token", "the header X-CSRF-Token is not the session's; GET /api/session has it"
            )
        return key.access

    def keys(self) -> tuple[ApiKey, ...]:
        """Return the keys of now."""
        return self._file.current() if self._file else ()

    def key_of(self, request: Request, secret: str) -> ApiKey:
        """Return the key that a client has sent.

        Wrong keys are limited by address. A valid one is always admitted: behind a proxy, one client could lock out
        all others, and with 256 random bits no number of attempts finds a key.

        Raises:
            RequestError: 401 or 429.
        """
        key = match(self.keys(), secret)
        return key or self._refuse_key(request)

    def _refuse_key(self, request: Request) -> NoReturn:
        address = self._addresses.of(request)
        if wait_s := self._wrong_keys.take(network_of(address)):
            raise RequestError(429, "too_many_wrong_keys", "too many wrong keys; correct the key", retry_after_s=wait_s)
        log.warning("a wrong key from %s, request %s", address, request.state.request_id)
        raise RequestError(401, "invalid_api_key", "the key is none of this server's; correct it")

    async def session_secret(self) -> bytes:
        """Return the secret of sessions, from Redis at most once a minute."""
        return self._secret.fresh or await self._run(self._secret.read)


def guard_of(request: Request) -> Guard:
    """Return the guard of the server that answers a request."""
    return cast("Guard", request.app.state.guard)


def check_exposure(settings: ServerSettings) -> None:
    """Check that a server without keys is reached from this machine only.

    Raises:
        InputError: it is not. The message has the cure.
    """
    host, _ = parse_address(settings.address, name="the address")
    if settings.api_keys_file is None and not is_loopback(host):
        raise InputError(
            f"the address {settings.address} is reached from other machines, so the server needs keys: run "
            "`latentfarm key new NAME --append keys.txt` and set LATENTFARM_API_KEYS_FILE=keys.txt, or serve "
            "127.0.0.1:7860"
        )


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise RequestError(
            415, "unsupported_encoding", "the body has a Content-Encoding; send it without, files as they are"
        )


def _no_key() -> RequestError:
    return RequestError(
        401,
        "no_api_key",
        "the server needs a key: send Authorization: Bearer KEY, X-API-Key, or Basic with the key as password",
    )


def _same(sent: str, expected: str) -> bool:
    return hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), expected.encode())

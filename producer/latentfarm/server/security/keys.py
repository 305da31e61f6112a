"""API keys: a file of names, hashes and scopes. No key itself is stored anywhere."""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from latentfarm.errors import InputError
from latentfarm.server.http.operation import Scope
from latentfarm.server.security.access import LOCAL, Access

log = logging.getLogger(__name__)

#: how a key begins, by which scanners of repositories find one
_PREFIX = "lf_"
_KEY_BYTES = 32
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
#: every request is compared with all keys
_MAX_KEYS = 1_000
_MAX_FILE_BYTES = 1_048_576
#: seconds between two checks of the file
_CHECK_S = 1.0
_SCOPES = {scope.value: scope for scope in Scope if scope is not Scope.NONE}


@dataclass(frozen=True)
class ApiKey:
    """One line of the keys file. ``digest`` is the SHA-256 of the key, which has 256 random bits."""

    access: Access
    digest: bytes

    @property
    def name(self) -> str:
        """The name of the key."""
        return self.access.name

    @property
    def line(self) -> str:
        """The key's line in the file."""
        scopes = ",".join(scope for scope in _SCOPES if _SCOPES[scope] in self.access.scopes)
        return f"{self.name}:{self.digest.hex()}:{scopes}"


def digest_of(secret: str) -> bytes:
    """Return the digest of a key as a client sends it."""
    return sha256(secret.encode("utf-8", "surrogateescape")).digest()


def new_key(name: str, scopes: str) -> tuple[str, ApiKey]:
    """Return a new secret and its line.

    Raises:
        InputError: the name or the scopes are invalid.
    """
    secret = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    return secret, ApiKey(Access(_check_name(name), _parse_scopes(scopes)), digest_of(secret))


def parse_keys(text: str, file: str) -> tuple[ApiKey, ...]:
    """Return the keys of a file's text. Empty lines, and lines that begin with ``#``, are skipped.

    Raises:
        InputError: a line is invalid, or two have the same name or key. The message has its number.
    """
    found: list[ApiKey] = []
    names: dict[str, int] = {}
    digests: dict[bytes, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = _parse_line(line.strip())
        except InputError as error:
            raise InputError(f"{file} line {number}: {error}") from None
        for what, seen, value in (("name", names, key.name), ("key", digests, key.digest)):
            if value in seen:
                raise InputError(
                    f"{file} line {number} has the same {what} as line {seen[value]}: "  # type: ignore[index]
                    "a key has one line, and a name one key; remove a line"
                )
        names[key.name] = digests[key.digest] = number
        found.append(key)
    if len(found) > _MAX_KEYS:
        raise InputError(f"{file} has {len(found):,} keys, at most {_MAX_KEYS:,} are allowed; remove some")
    return tuple(found)


def _parse_line(line: str) -> ApiKey:
    # a line may hold a secret in the place of its hash: no message quotes it
    parts = line.split(":")
    if len(parts) != 3:
        raise InputError(f"it has {len(parts)} fields; write NAME:SHA256:SCOPES, as `latentfarm key new` prints it")
    name, digest, scopes = (part.strip() for part in parts)
    if not _DIGEST.fullmatch(digest.lower()):
        raise InputError(
            "the second field is not the SHA-256 of a key in 64 hexadecimal digits; "
            "write the line that `latentfarm key new` prints"
        )
    return ApiKey(Access(_check_name(name), _parse_scopes(scopes)), bytes.fromhex(digest))


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"key name {name[:80]!r}: write 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit"
        )
    if name == LOCAL.name:
        raise InputError(f"key name {name!r} stands for clients of a server without keys; choose another name")
    return name


def _parse_scopes(text: str) -> frozenset[Scope]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in _SCOPES:
            raise InputError(f"scope {word[:80]!r}: write one or more of {', '.join(_SCOPES)}, separated by commas")
    return frozenset(_SCOPES[word] for word in words)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return the keys of a file.

    Raises:
        InputError: it cannot be read, or a line is invalid.
    """
    try:
        with path.open("rb") as file:
            body = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        cure = "name a file that the server may read; `latentfarm key new NAME --append FILE` makes one"
        raise InputError(f"the keys file {str(path)!r}: {error.strerror}; {cure}") from None
    if len(body) > _MAX_FILE_BYTES:
        raise InputError(f"the keys file {str(path)!r} is longer than {_MAX_FILE_BYTES} bytes; is it the right file?")
    try:
        return parse_keys(body.decode(), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"the keys file {str(path)!r} is not UTF-8 at byte {error.start}; write plain text") from None


def append_key(path: Path, key: ApiKey) -> None:
    """Add a key to a file, which is made if there is none.

    Raises:
        InputError: the file is invalid, or has the name already. Nothing is written then.
    """
    text = ""
    if path.exists():
        names = {each.name for each in read_keys(path)}
        if key.name in names:
            raise InputError(f"{str(path)!r} has the name {key.name!r} already; remove its line or choose another name")
        text = path.read_text(encoding="utf-8")
    separator = "" if not text or text.endswith("\n") else "\n"
    # only the owner may read or change a new file
    path.touch(0o600)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{separator}{key.line}\n")


def match(keys: Iterable[ApiKey], secret: str) -> ApiKey | None:
    """Return the key that a client has sent, None if it is none of ``keys``.

    Every key is compared, in constant time: the time does not show which name or which part of a digest matches.
    """
    digest, found = digest_of(secret), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


class KeyFile:
    """The keys of a file, which is read again after a change.

    If a changed file is invalid or missing, the keys from before stay, and an error is logged.

    Raises:
        InputError: it is invalid at the start, or has no key.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._state = _state_of(path)
        self._keys = read_keys(path)
        if not self._keys:
            raise InputError(f"the keys file {str(path)!r} has no key; `latentfarm key new NAME` prints a line for it")
        if path.stat().st_mode & stat.S_IWOTH:
            log.warning("every user of this machine can write %s and so admit anyone; run chmod o-w on it", path)
        self._checked_at = clock()

    def current(self) -> tuple[ApiKey, ...]:
        """Return the keys of now, or of a second ago."""
        now = self._clock()
        if now - self._checked_at >= _CHECK_S:
            self._checked_at = now
            state = _state_of(self._path)
            if state != self._state:
                self._state = state
                self._read_again()
        return self._keys

    def _read_again(self) -> None:
        try:
            self._keys = read_keys(self._path)
        except InputError as error:
            log.error("the changed keys file is not used, the keys from before stay valid: %s", error)
        else:
            log.info("the keys file was read again: %d keys", len(self._keys))


def _state_of(path: Path) -> tuple[int, ...]:
    """Return what changes with the file's content. A mounted secret changes as a link to another file."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino

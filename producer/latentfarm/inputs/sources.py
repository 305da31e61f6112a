"""Read the bytes of an input image from where a row's source is."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from latentfarm.errors import InputError, UnavailableError
from latentfarm.https.download import Limits, download
from latentfarm.inputs.masks import mask_of_transparency
from latentfarm.inputs.policy import InputPolicy
from latentfarm.inputs.store import read_input
from latentfarm.limits import MAX_INPUT_BYTES
from latentfarm.names import TRANSPARENT
from latentfarm.storage.bucket import Bucket, MissingObjectError, error_code

#: seconds from the first DNS query of a URL to the last byte of its image
_DOWNLOAD_TIMEOUT_S = 30.0
_ACCEPT = "image/png, image/jpeg, image/webp"
_PRIVATE_CURE = "to allow it, set LATENTFARM_INPUT_ALLOW_PRIVATE=true"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FILE_ID = re.compile(r"file-[0-9a-f]{24}")
#: a path may have a colon, so other schemes are those with slashes
_SCHEME = re.compile(r"(data|sha256)(?=:)|([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_S3_URL = re.compile(r"s3://([^/]+)/(.+)", re.DOTALL)
_DATA_URL = re.compile(r"data:(image/[a-z0-9.+-]+)?(?:;[^;,]*)*?;base64,(.*)", re.IGNORECASE | re.DOTALL)
#: characters of base64 of the largest input, with line ends and percent-encoding to spare
_MAX_BASE64 = MAX_INPUT_BYTES * 3 // 2
_URL_SAFE = str.maketrans("-_", "+/")
#: S3's answers that are about the object alone
_REFUSED = {"AccessDenied", "403", "NoSuchBucket", "InvalidBucketName", "AllAccessDisabled", "InvalidObjectState"}


def read_source(source: str, policy: InputPolicy) -> bytes:
    """Return the bytes of a source. They are not checked.

    Args:
        source: a path, ``s3://bucket/key``, an https URL, ``file-...``, a data URL, or ``sha256:`` and 64 hex digits.
            After ``transparent:`` the source is an image, and its transparent part is a mask.
        policy: which of them may be used.

    Raises:
        InputError: the source may not be used, or it cannot be read. The text is problem and cure.
        UnavailableError: the farm's store does not answer.
    """
    if source.startswith(TRANSPARENT):
        return mask_of_transparency(read_source(source.removeprefix(TRANSPARENT), policy))
    if _FILE_ID.fullmatch(source) and policy.read_file is not None:
        return policy.read_file(source)
    scheme = _SCHEME.match(source)
    read = _READERS.get((scheme[1] or scheme[2]).lower(), _refuse) if scheme else _read_path
    return read(source, policy)


def is_local(source: str, policy: InputPolicy) -> bool:
    """Return whether a source costs little to read again: a file of this machine, or a data URL."""
    scheme = _SCHEME.match(source.removeprefix(TRANSPARENT))
    return policy.folder is not None if scheme is None else (scheme[1] or "").lower() == "data"


def parse_data_url(url: str) -> bytes:
    """Return the bytes of a data URL (RFC 2397) with base64.

    Raises:
        InputError: it is none, or too large. The text is problem and cure.
    """
    found = _DATA_URL.fullmatch(url)
    if found is None:
        raise InputError("is no data URL of an image; write data:image/png;base64,...")
    text = found[2]
    if len(text) > _MAX_BASE64:
        raise InputError(f"has more than {MAX_INPUT_BYTES:,} bytes; store it smaller")
    text = "".join(unquote(text).split()).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InputError("has a data URL that is not base64; encode the file again") from None


def _read_digest(source: str, policy: InputPolicy) -> bytes:
    if not _DIGEST.fullmatch(source):
        raise InputError("is no digest; write sha256: and 64 hex digits in lower case")
    if policy.bucket is None:
        raise _no_store()
    try:
        return read_input(policy.bucket, source)
    except MissingObjectError:
        raise InputError("is not stored in the farm's bucket; write where the image is") from None


def _read_s3(source: str, policy: InputPolicy) -> bytes:
    found = _S3_URL.fullmatch(source)
    if found is None:
        raise InputError("names no object; write s3://BUCKET/KEY")
    if policy.bucket is None:
        raise _no_store()
    name, own = found[1], policy.bucket
    if name != own.name and not policy.any_bucket:
        raise InputError(f"is in another bucket than the farm's; copy it to s3://{own.name}/")
    # the same store and credentials
    bucket = Bucket(name, where=f"bucket {name}", open_session=lambda: (own.client, own.credentials))
    try:
        return bucket.get(found[2], max_bytes=MAX_INPUT_BYTES)
    except MissingObjectError:
        raise InputError("is not in the store; correct bucket and key") from None
    except InputError:
        raise InputError(f"has more than {MAX_INPUT_BYTES:,} bytes; store it smaller") from None
    except UnavailableError as error:
        code = error_code(error)
        if name != own.name and code in _REFUSED:
            raise InputError(f"is refused by the store ({code}); grant the farm's credentials access to it") from None
        raise


def _read_url(source: str, policy: InputPolicy) -> bytes:
    limits = Limits(
        check_host=policy.check_host,
        max_bytes=MAX_INPUT_BYTES,
        timeout_s=_DOWNLOAD_TIMEOUT_S,
        accept=_ACCEPT,
        private_cure=_PRIVATE_CURE,
        allow_private=policy.allow_private,
    )
    return download(source, limits)


def _read_path(source: str, policy: InputPolicy) -> bytes:
    if policy.folder is None:
        raise InputError("is a file of your own machine; write a data URL, s3://BUCKET/KEY or https://HOST/PATH")
    path = policy.folder / source
    try:
        with open(path, "rb", opener=_open_at_once) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError("is not a regular file; name an image file")
            if status.st_size > MAX_INPUT_BYTES:
                raise InputError(
                    f"has {status.st_size:,} bytes; at most {MAX_INPUT_BYTES:,} are allowed: store it smaller"
                )
            return stream.read(MAX_INPUT_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read ({reason}); {_path_cure(Path(source), policy.folder)}") from None


def _read_data(source: str, policy: InputPolicy) -> bytes:  # noqa: ARG001 - each policy allows them
    return parse_data_url(source)


def _refuse(source: str, policy: InputPolicy) -> bytes:  # noqa: ARG001 - as of the readers
    raise InputError("has an unknown scheme; write a path, s3://BUCKET/KEY, https://HOST/PATH or a data URL")


_READERS: dict[str, Callable[[str, InputPolicy], bytes]] = {
    "data": _read_data,
    "sha256": _read_digest,
    "s3": _read_s3,
    "http": _read_url,
    "https": _read_url,
}


def _open_at_once(path: str, flags: int) -> int:
    # a FIFO would wait for its writer
    return os.open(path, flags | os.O_NONBLOCK)


def _path_cure(path: Path, folder: Path) -> str:
    return "correct the path" if path.is_absolute() else f"paths begin at {folder.absolute()}: correct it"


def _no_store() -> InputError:
    return InputError("needs a store, and none is configured; set LATENTFARM_BUCKET, or run `latentfarm up`")

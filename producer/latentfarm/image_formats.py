"""The image formats of stored images, and the texts embedded in them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

#: Exif tags, named as in CIPA DC-008: the description, the pointer to the second directory, and the comment in it
IMAGE_DESCRIPTION, EXIF_DIRECTORY, USER_COMMENT = 0x010E, 0x8769, 0x9286
#: prefix of a comment in Unicode; UTF-16 follows, big-endian as piexif writes and reads it
UNICODE_COMMENT = b"UNICODE\0"


@dataclass(frozen=True)
class ImageFormat:
    """One format: its option's name, the extension of keys and files with its dot, its media type, Pillow's name."""

    name: str
    extension: str
    content_type: str
    pillow: str


PNG = ImageFormat("png", ".png", "image/png", "PNG")
WEBP = ImageFormat("webp", ".webp", "image/webp", "WEBP")
JPEG = ImageFormat("jpeg", ".jpg", "image/jpeg", "JPEG")
IMAGE_FORMATS = MappingProxyType({each.name: each for each in (PNG, WEBP, JPEG)})
#: what Pillow may read: it knows dozens of formats more, each with faults of its own
PILLOW_FORMATS = tuple(each.pillow for each in IMAGE_FORMATS.values())

_BY_EXTENSION = {each.extension: each for each in IMAGE_FORMATS.values()}
#: alternatives of a regular expression, without the dot
EXTENSIONS = "|".join(extension.removeprefix(".") for extension in _BY_EXTENSION)


def format_of(name: str) -> ImageFormat | None:
    """Return the format that the extension of a key or a file names, None for any other extension."""
    return _BY_EXTENSION.get(name[name.rfind(".") :])


def extension_for(key: str) -> str:
    """Return the extension of the file for an object: that of its key, ``.png`` if it is none of ours."""
    return (format_of(key) or PNG).extension


def stem(name: str) -> str:
    """Return a file's name without the extension of a format."""
    known = format_of(name)
    return name.removesuffix(known.extension) if known else name


def embedded_text(image: Image.Image) -> dict[str, str]:
    """Return the texts embedded in an opened image: ``parameters`` and ``latentfarm``, as far as present.

    A PNG has a chunk for each. WebP and JPEG have Exif, where ``latentfarm`` is the ``ImageDescription`` and
    ``parameters`` the ``UserComment``, as in AUTOMATIC1111's web UI.
    """
    if image.format == PNG.pillow:
        found = {name: image.info.get(name) for name in ("parameters", "latentfarm")}
        return {name: text for name, text in found.items() if isinstance(text, str)}
    exif = image.getexif()
    texts = {}
    comment = exif.get_ifd(EXIF_DIRECTORY).get(USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(UNICODE_COMMENT):
        texts["parameters"] = comment.removeprefix(UNICODE_COMMENT).decode("utf-16-be", "replace")
    description = exif.get(IMAGE_DESCRIPTION)
    if isinstance(description, str):
        texts["latentfarm"] = description
    return texts

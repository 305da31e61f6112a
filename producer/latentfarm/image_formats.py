"""The formats that pictures are stored in, and what is written inside of them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

#: Exif's tags, by name in its standard (CIPA DC-008): the text of a picture, the pointer to its second directory, and
#: there the comment, where AUTOMATIC1111's web UI keeps its parameters in JPEG and WebP
IMAGE_DESCRIPTION, EXIF_DIRECTORY, USER_COMMENT = 0x010E, 0x8769, 0x9286
#: what a comment in Unicode begins with; UTF-16 follows, big-endian as piexif writes and reads it
UNICODE_COMMENT = b"UNICODE\0"


@dataclass(frozen=True)
class ImageFormat:
    """One format: its name for users, the ending of keys and files with its dot, its media type, its name in Pillow."""

    name: str
    ending: str
    content_type: str
    pillow: str


PNG = ImageFormat("png", ".png", "image/png", "PNG")
WEBP = ImageFormat("webp", ".webp", "image/webp", "WEBP")
JPEG = ImageFormat("jpeg", ".jpg", "image/jpeg", "JPEG")
IMAGE_FORMATS = MappingProxyType({each.name: each for each in (PNG, WEBP, JPEG)})

_BY_ENDING = {each.ending: each for each in IMAGE_FORMATS.values()}
#: what stands between "." and the end of a key or a file, for regular expressions
ENDINGS = "|".join(ending.removeprefix(".") for ending in _BY_ENDING)


def format_of(name: str) -> ImageFormat | None:
    """Return the format that the ending of a key or a file tells, None where it tells none of ours."""
    return _BY_ENDING.get(name[name.rfind(".") :])


def ending_of(key: str) -> str:
    """Return the ending of the file that an object becomes: its key's, or a PNG's where that is none of ours."""
    return (format_of(key) or PNG).ending


def stem_of(name: str) -> str:
    """Return a file's name without the ending of a format."""
    known = format_of(name)
    return name.removesuffix(known.ending) if known else name


def text_inside(image: Image.Image) -> dict[str, str]:
    """Return the texts that were written into an opened picture: ``parameters`` and ``latentfarm``, if they are there.

    In a PNG each is a chunk; in the others Exif has the first as ``UserComment``, the second as ``ImageDescription``.
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

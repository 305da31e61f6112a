"""Decode an input image. Submissions check with this code what workers decode with it, so that both agree.

Formats are PNG, JPEG and WebP, found by their first bytes. What is done, in this order:

1. An image of 16 bits a sample keeps the upper 8 of them.
2. A colour profile is converted to sRGB by Little CMS, perceptually. A profile that is damaged, or that is of another
   colour space than the image, is ignored, as browsers do; an image without a profile is sRGB.
3. Transparent parts are composited: on white in an image, on black in a mask, where they are kept.
4. The image is rotated and mirrored as its EXIF orientation states.

The samples of an opaque 8-bit sRGB image are those of its file.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib

from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from latentfarm.errors import InputError
from latentfarm.limits import MAX_INPUT_BYTES, MAX_INPUT_PIXELS, MAX_INPUT_SIDE

# Pillow warns on the user's terminal of EXIF data that states nothing
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

FORMATS = ("PNG", "JPEG", "WebP")
_LISTED = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
#: what else may be meant, by its first bytes, for the error
_OTHERS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop file",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\x76\x2f\x31\x01": "an OpenEXR file",
    b"version https://git-lfs": "a pointer of Git LFS",
}
_BRANDS = {b"avif": "an AVIF", b"heic": "a HEIC", b"heix": "a HEIC", b"mif1": "a HEIC"}
#: what Pillow raises for damaged files
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, zlib.error)
_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(data: bytes) -> ImageFile:
    """Return an image whose header is read, and whose samples are not yet.

    Raises:
        InputError: the bytes are no single image of a known format, or it is too large. The text has the cure.
    """
    if len(data) > MAX_INPUT_BYTES:
        raise InputError(f"has {len(data):,} bytes; at most {MAX_INPUT_BYTES:,} are allowed: store it smaller")
    try:
        image = _open(data)
        frames = getattr(image, "n_frames", 1)
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise InputError(f"is damaged ({_shorten(error)}); store it again as {_LISTED}") from None
    width, height = image.size
    if width * height > MAX_INPUT_PIXELS or max(width, height) > MAX_INPUT_SIDE:
        raise InputError(
            f"is {width}x{height}; at most {MAX_INPUT_PIXELS:,} pixels and {MAX_INPUT_SIDE:,} a side are allowed: "
            "store it smaller"
        )
    if frames > 1:
        raise InputError(f"is animated, with {frames} frames; store one of them as an image")
    if image.mode == "CMYK" and "icc_profile" not in image.info:
        raise InputError("is CMYK without a colour profile, so its colours are unknown; store it as RGB")
    return image


def load(image: ImageFile) -> None:
    """Decode the samples of an opened image.

    Raises:
        InputError: it is truncated or damaged.
    """
    try:
        image.load()
    except _DAMAGE as error:
        raise InputError(f"is truncated or damaged ({_shorten(error)}); store or send it again") from None


def decode_image(data: bytes) -> Image.Image:
    """Return an input image, or a control image, as an RGB image; see the module for what is done.

    Raises:
        InputError: as ``open_image`` and ``load``.
    """
    return _decode(data, background="white")


def decode_mask(data: bytes) -> Image.Image:
    """Return a mask as a greyscale image of mode L: white is painted again, black and transparent parts are kept.

    Raises:
        InputError: as ``open_image`` and ``load``.
    """
    return _decode(data, background="black").convert("L")


def _decode(data: bytes, *, background: str) -> Image.Image:
    image = open_image(data)
    load(image)
    orientation = _orientation(image)
    colors, alpha = _split_alpha(image)
    rgb = _to_srgb(colors, image.info.get("icc_profile"))
    if alpha is not None:
        flat = Image.new("RGB", rgb.size, background)
        flat.paste(rgb, mask=alpha)
        rgb = flat
    if orientation != 1:
        rgb = rgb.transpose(_TRANSPOSITIONS[orientation])
    # the caller gets samples alone
    rgb.info.clear()
    return rgb


def _open(data: bytes) -> ImageFile:
    # not Image.open: it warns of large images before their size can be compared with our limit
    stream = io.BytesIO(data)
    if data.startswith(_PNG):
        return PngImagePlugin.PngImageFile(stream)
    if data.startswith(_JPEG):
        # a JPEG of a phone may have a second image, of depth or brightness, which this class does not read
        return JpegImagePlugin.JpegImageFile(stream)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile(stream)
    raise InputError(f"is {_name(data)}; store it as {_LISTED}")


def _name(data: bytes) -> str:
    """Return what bytes of another format seem to be."""
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video")
    if data[:256].lstrip()[:1] == b"<":
        return "an SVG" if b"<svg" in data[:1024] else "a web page"
    return next((name for start, name in _OTHERS.items() if data.startswith(start)), "not an image of a known format")


def _orientation(image: ImageFile) -> int:
    try:
        found = int(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:
        # damaged EXIF data states nothing
        return 1
    return found if 1 <= found <= 8 else 1


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return an image of mode L, RGB or CMYK, and its alpha of mode L, None if it is opaque."""
    if image.mode.startswith("I"):
        # conversion to L would clip, not scale
        image = image.point(lambda sample: sample * (1 / 256)).convert("L")
    if image.mode == "1":
        image = image.convert("L")
    if not image.has_transparency_data:
        return (image.convert("RGB") if image.mode == "P" else image), None
    image = image.convert("LA" if image.mode in {"L", "LA", "La"} else "RGBA")
    alpha = image.getchannel("A")
    return image.convert("L" if image.mode == "LA" else "RGB"), alpha


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            found = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if not _is_srgb(found):
                converted = ImageCms.profileToProfile(
                    image, found, ImageCms.createProfile("sRGB"), ImageCms.Intent.PERCEPTUAL, outputMode="RGB"
                )
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, *_DAMAGE):
            if image.mode == "CMYK":
                raise InputError("is CMYK with a damaged colour profile; store it as RGB") from None
    return image.convert("RGB")


def _is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    # a conversion from sRGB to sRGB would round
    return "sRGB" in ImageCms.getProfileDescription(profile)


def _shorten(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:100]

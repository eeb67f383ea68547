"""Encoded bytes -> pixels, on the grid that a viewer shows (contract 3.2).

The plugins are called directly instead of through `Image.open`: only the declared formats are then ever tried,
and Pillow's process-wide decompression-bomb limit is replaced by the caller's own `max_mpx`.
"""

import io
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from maskmill.storage.jpeg import decode_sound

_ORIENTATION = 0x0112  # the EXIF tag
_BAND_PIXELS = 1 << 17  # pixels that leave Pillow at a time: their copies stay in the cache

Factory = Callable[[IO[bytes]], ImageFile.ImageFile]
# A multi-picture JPEG (MPO) is opened as the JPEG that it begins with: its first frame.
_MAGIC: tuple[tuple[bytes, Factory], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),
    (b"MM\0+", TiffImageFile),
    (b"BM", BmpImageFile),
)

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "TIFF": "tif", "BMP": "bmp", "WEBP": "webp"}

# From the upright array to a view with the stored orientation: the inverse of Pillow's exif_transpose.
_AS_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


class ImageTooLarge(ValueError):
    """The image has more pixels than `generate.max_image_mpx` allows; it was not decoded."""


def decode_image(data: bytes, max_mpx: float) -> np.ndarray:
    """The image in `data` (JPEG, PNG, WebP, TIFF or BMP; its first frame) as H x W x 3 uint8, upright, RGB.

    Equal to Pillow's open, exif_transpose, convert("RGB"); 16-bit grey is scaled by 1/257 and rounded. The result
    is C-contiguous and owns its memory. `max_mpx`: the most megapixels (10^6 pixels); more raises ImageTooLarge
    before anything is decoded. Anything else that cannot be decoded raises ValueError. The words of an error
    depend on `data` alone, because they end up in a row.
    """
    try:
        with _pillow_limit_lifted():
            return _decode(data, max_mpx)
    except (ImageTooLarge, MemoryError):
        raise
    except Exception as e:  # Pillow's plugins raise nearly anything on broken bytes
        raise ValueError(f"cannot decode the image: {_words(e)}") from e


def megapixels(data: bytes) -> float:
    """10^6 pixels, by the header; 0 if it cannot be read (decode_image then says why)."""
    try:
        with _pillow_limit_lifted():
            width, height = _factory(data)(io.BytesIO(data)).size
    except Exception:
        return 0.0
    return float(width * height / 1e6)


def orientation_of(data: bytes) -> int:
    """The EXIF (or XMP) orientation 1-8 of an encoded image that decode_image takes; 1 is upright, 5-8 turn by 90
    degrees. Only the header is read."""
    with _pillow_limit_lifted():
        return _orientation(_factory(data)(io.BytesIO(data)))


def extension_of(data: bytes) -> str:
    """`jpg`, `png`, `webp`, `tif` or `bmp`, from the first bytes of an image that decode_image takes."""
    return _EXTENSIONS[str(_factory(data).format)]  # type: ignore[attr-defined]


def to_upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """An array of the stored pixels (its first two axes), turned as an image with this orientation is."""
    if (as_stored := _AS_STORED.get(orientation)) is None:
        return stored
    turned = orientation >= 5
    shape = (stored.shape[1], stored.shape[0]) if turned else stored.shape[:2]
    out = np.empty((*shape, *stored.shape[2:]), stored.dtype)
    as_stored(out)[...] = stored
    return out


def _decode(data: bytes, max_mpx: float) -> np.ndarray:
    if not data:
        raise ValueError("the file is empty")
    if size := _webp_size(data):
        _check_size(size, max_mpx)  # Pillow allocates a WebP's canvas as it opens it
    im = _factory(data)(io.BytesIO(data))
    _check_size(im.size, max_mpx)
    if isinstance(im, JpegImageFile) and im.mode == "RGB":
        sound = decode_sound(data, im.size, _orientation(im))
        if sound is not None:
            return sound
    im.load()
    width, height = im.size
    as_stored = _stored_view(im)
    turned = as_stored is not None and as_stored(np.empty((1, 2))).shape[0] == 2
    out = np.empty((width, height, 3) if turned else (height, width, 3), np.uint8)
    _fill(as_stored(out) if as_stored else out, im)
    return out


def _factory(data: bytes) -> Factory:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile
    for magic, factory in _MAGIC:
        if data.startswith(magic):
            return factory
    raise ValueError("not a JPEG, PNG, WebP, TIFF or BMP")


def _check_size(size: tuple[int, int], max_mpx: float) -> None:
    width, height = size
    if width * height > round(max_mpx * 1e6):
        mpx = width * height / 1e6
        raise ImageTooLarge(f"{width}x{height} = {mpx:.1f} Mpx is above generate.max_image_mpx={max_mpx:g}")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from a WebP header; None for another format or a broken header."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _stored_view(im: Image.Image) -> Callable[[np.ndarray], np.ndarray] | None:
    """What the orientation asks for."""
    return _AS_STORED.get(_orientation(im))


def _orientation(im: Image.Image) -> int:
    """EXIF's (or XMP's). Broken EXIF counts as upright: the pixels themselves are fine."""
    try:
        found = im.getexif().get(_ORIENTATION, 1)
        return found if found in _AS_STORED else 1
    except Exception:
        return 1


def _fill(view: np.ndarray, im: Image.Image) -> None:
    """Writes the pixels of `im` (stored orientation) into `view`, H x W x 3 uint8, a band at a time."""
    width, height = im.size
    cols = min(width, _BAND_PIXELS)
    rows = max(1, _BAND_PIXELS // cols)
    for y in range(0, height, rows):
        for x in range(0, width, cols):
            box = (x, y, min(x + cols, width), min(y + rows, height))
            view[box[1] : box[3], box[0] : box[2]] = _rgb(im.crop(box))


def _rgb(band: Image.Image) -> np.ndarray:
    if band.mode == "F":
        raise ValueError("float pixels (mode F) have no fixed range: convert the image to 8 or 16 bit")
    if band.mode == "I" or band.mode.startswith("I;16"):
        grey = np.asarray(band).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit pixels (mode I) outside 0..65535: convert the image to 8 or 16 bit")
        return ((grey + 128) // 257).astype(np.uint8)[..., None]  # 257 is odd: never a tie
    return np.asarray(band if band.mode == "RGB" else band.convert("RGB"))


def _words(e: Exception) -> str:
    """One short line without object addresses."""
    text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the data", str(e)).strip()
    if isinstance(e, LookupError):  # a bare number or name otherwise
        text = f"{type(e).__name__} {text}"
    return (text.splitlines() or [type(e).__name__])[0][:200]


_lock = threading.Lock()
_inside = 0
_users_limit: int | None = None


@contextmanager
def _pillow_limit_lifted() -> Iterator[None]:
    """Pillow's plugins check a process-wide limit on their own; it is off only while some thread decodes here."""
    global _inside, _users_limit
    with _lock:
        if _inside == 0:
            _users_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                Image.MAX_IMAGE_PIXELS = _users_limit

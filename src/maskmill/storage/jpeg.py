"""Sound JPEGs by simplejpeg: Pillow's pixels in half the time and two fifths of the memory.

Pillow decodes into four bytes a pixel and copies from there; simplejpeg has libjpeg-turbo write the array itself. Both
carry libjpeg-turbo, so the pixels are equal (`agrees_with_pillow` looks). At the least complaint of the library
simplejpeg gives up: then Pillow decodes the file, or refuses it in its own words. (OpenCV would not do: it takes files
that Pillow refuses, and imdecode holds the pixels twice.)
"""

import functools
import importlib.util
import io
import logging

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

log = logging.getLogger("maskmill")

_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # OpenCV's codes; for 5-8 after a transposition


def decode_sound(data: bytes, size: tuple[int, int], orientation: int) -> np.ndarray | None:
    """H x W x 3 uint8, RGB, upright; None if Pillow has to do it.

    `size` and `orientation`: the stored (width, height) and EXIF's 1-8, as Pillow read them from the header of a JPEG
    with three components.
    """
    if not agrees_with_pillow():
        return None
    pixels = decoded(data, size)
    return None if pixels is None else upright(pixels, orientation)


def decoded(data: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """The stored pixels, H x W x 3 uint8, RGB; None if the library has anything to say against the file."""
    import simplejpeg  # where it is installed

    width, height = size
    if 3 * width * height >= 1 << 31:  # simplejpeg counts in int
        return None
    out = np.empty((height, width, 3), np.uint8)
    try:
        made = simplejpeg.decode_jpeg(data, "RGB", buffer=out, strict=True)
    except (ValueError, RuntimeError):
        return None
    return out if made.shape == out.shape else None


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What pixels.to_upright does, five times as fast, and in place except for the turns by 90 degrees."""
    import cv2  # as late as the first image

    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    if (flip := _FLIPS.get(orientation)) is not None:
        cv2.flip(pixels, flip, dst=pixels)
    return pixels


@functools.cache
def agrees_with_pillow() -> bool:
    """Whether simplejpeg is there and its libjpeg gives the pixels of Pillow's. One look, cached."""
    if importlib.util.find_spec("simplejpeg") is None:
        log.info("simplejpeg is not installed: Pillow decodes JPEGs, slower and in more memory")
        return False
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8))
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            out = io.BytesIO()
            noise.save(out, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
            found, want = decoded(out.getvalue(), noise.size), JpegImageFile(io.BytesIO(out.getvalue()))
            if found is None or not np.array_equal(found, np.asarray(want)):
                log.warning("simplejpeg does not decode as Pillow does: Pillow does it all, slower and in more memory")
                return False
    return True

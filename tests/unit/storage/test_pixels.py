import io
import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps

from maskmill.storage.pixels import ImageTooLarge, decode_image

RNG = np.random.default_rng(0)


def encode(im: Image.Image, format: str, exif: Image.Exif | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    im.save(out, format, **options, **({"exif": exif} if exif else {}))  # type: ignore[arg-type]
    return out.getvalue()


def picture(width: int = 37, height: int = 23, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_equal_to_pillow(format: str) -> None:
    data = encode(picture(), format)
    pixels = decode_image(data, 1)
    assert pixels.dtype == np.uint8 and pixels.shape == (23, 37, 3)
    assert pixels.flags.c_contiguous and pixels.flags.owndata and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_other_modes(mode: str) -> None:
    data = encode(picture(mode=mode), "PNG")
    np.testing.assert_array_equal(decode_image(data, 1), by_pillow(data))


def test_cmyk_and_palette_with_transparency() -> None:
    cmyk = encode(picture(mode="CMYK"), "JPEG")
    np.testing.assert_array_equal(decode_image(cmyk, 1), by_pillow(cmyk))
    palette = encode(picture(mode="P"), "PNG", transparency=3)
    np.testing.assert_array_equal(decode_image(palette, 1), by_pillow(palette))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), format, exif)
    pixels = decode_image(data, 1)
    np.testing.assert_array_equal(pixels, by_pillow(data))
    assert pixels.shape == ((37, 23, 3) if 5 <= orientation <= 8 else (23, 37, 3))
    assert pixels.flags.c_contiguous and pixels.flags.owndata


def test_many_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture(), "PNG", exif)
    for pixels in (1, 10, 50, 100):
        monkeypatch.setattr("maskmill.storage.pixels._BAND_PIXELS", pixels)
        np.testing.assert_array_equal(decode_image(data, 1), by_pillow(data))


def test_sixteen_bits_are_scaled_by_257() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    want = np.rint(values / 257).astype(np.uint8)
    for data in (
        encode(Image.fromarray(values), "PNG"),
        encode(Image.fromarray(values), "TIFF"),
        encode(Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes()), "TIFF"),
        encode(Image.fromarray(values.astype(np.int32)), "TIFF"),
    ):
        pixels = decode_image(data, 1)
        assert pixels.shape == (256, 256, 3)
        for channel in range(3):
            np.testing.assert_array_equal(pixels[..., channel], want)


def test_values_without_a_range_are_refused() -> None:
    with pytest.raises(ValueError, match="mode F"):
        decode_image(encode(Image.new("F", (4, 4)), "TIFF"), 1)
    for value in (-1, 65536):
        with pytest.raises(ValueError, match="mode I"):
            decode_image(encode(Image.new("I", (4, 4), value), "TIFF"), 1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_size_limit(format: str) -> None:
    data = encode(Image.new("RGB", (1000, 500)), format)
    assert decode_image(data, 0.5).shape == (500, 1000, 3)
    with pytest.raises(ImageTooLarge) as e:
        decode_image(data, 0.4)
    assert str(e.value) == "1000x500 = 0.5 Mpx is above generate.max_image_mpx=0.4"


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_size_is_known_before_its_canvas_exists(lossless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(_: object) -> None:
        raise AssertionError("the decoder was opened")

    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (
        encode(picture(64, 48), "WEBP", lossless=lossless),
        encode(picture(64, 48), "WEBP", exif, lossless=lossless),
    ):
        monkeypatch.setattr("maskmill.storage.pixels.WebPImageFile", opened)
        with pytest.raises(ImageTooLarge, match="64x48"):
            decode_image(data, 0.001)


def test_size_is_checked_before_decoding() -> None:
    data = encode(Image.new("1", (20000, 20000)), "PNG")
    with pytest.raises(ImageTooLarge) as e:
        decode_image(data, 100)
    assert str(e.value) == "20000x20000 = 400.0 Mpx is above generate.max_image_mpx=100"


def test_pillows_own_limit_is_out_of_the_way_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP"):
            data = encode(picture(), format)
            threads = [threading.Thread(target=decode_image, args=(data, 1)) for _ in range(4)]
            for t in threads:
                t.start()
            assert decode_image(data, 1).shape == (23, 37, 3)
            for t in threads:
                t.join()
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(ValueError):
        decode_image(b"junk", 1)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_first_frame_of_many() -> None:
    first, second = picture(), picture()
    for format in ("TIFF", "MPO", "PNG", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encode(first, format, save_all=True, append_images=[second], **options)
        np.testing.assert_array_equal(decode_image(data, 1), by_pillow(data))
    np.testing.assert_array_equal(decode_image(data, 1), np.asarray(first))


def _tiff_cut() -> bytes:
    return encode(picture(200, 200), "TIFF")[:50000]


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"",
        lambda: b"hello, I am a text file",
        lambda: b"\xff\xd8\xff",
        lambda: b"II*\0",
        lambda: b"RIFF\0\0\0\0WEBPVP8 ",
        lambda: b"BM" + b"\0" * 100,
        lambda: encode(picture(), "GIF"),
        lambda: encode(picture(200, 200), "JPEG")[:3000],
        lambda: encode(picture(200, 200), "PNG")[:50000],
        lambda: encode(picture(200, 200), "WEBP")[:3000],
        lambda: encode(picture(200, 200), "BMP")[:50000],
        _tiff_cut,
    ],
)
def test_broken_files_raise_the_same_short_words(make: Callable[[], bytes]) -> None:
    data = make()
    words = set()
    for _ in range(2):
        with pytest.raises(ValueError) as e:
            decode_image(data, 100)
        words.add(str(e.value))
    (text,) = words
    assert "0x" not in text and "\n" not in text and len(text) < 250
    print(text)


def test_broken_exif_does_not_cost_the_image() -> None:
    data = encode(picture(), "JPEG")
    broken = b"Exif\0\0not a tiff header"
    data = data[:2] + b"\xff\xe1" + (len(broken) + 2).to_bytes(2, "big") + broken + data[2:]
    np.testing.assert_array_equal(decode_image(data, 1), np.asarray(Image.open(io.BytesIO(data))))

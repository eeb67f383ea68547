"""JPEGs: whoever decodes them, the outcome is Pillow's, pixel for pixel and word for word."""

import importlib.util
import io
import logging
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmill.storage import jpeg, pixels
from maskmill.storage.jpeg import agrees_with_pillow
from maskmill.storage.pixels import ImageTooLarge, decode_image

pytest.importorskip("simplejpeg")

EOI, SOS = b"\xff\xd9", b"\xff\xda"
SIZES = [(1, 1), (1, 40), (40, 1), (7, 9), (8, 8), (16, 16), (17, 33), (64, 48), (200, 150)]

Outcome = tuple[str, bytes]


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """For each JPEG so far, whether simplejpeg did it."""
    seen: list[bool] = []
    decode_sound = jpeg.decode_sound

    def watched(data: bytes, size: tuple[int, int], orientation: int) -> np.ndarray | None:
        found = decode_sound(data, size, orientation)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(pixels, "decode_sound", watched)
    agrees_with_pillow.cache_clear()
    yield seen
    agrees_with_pillow.cache_clear()


def encode(im: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    im.save(out, format, **options)
    return out.getvalue()


def picture(width: int = 64, height: int = 48, seed: int = 0, smooth: bool = False) -> Image.Image:
    rng = np.random.default_rng(seed)
    if smooth:
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        return small.resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def outcome(data: bytes) -> Outcome:
    try:
        image = decode_image(data, 10)
    except ValueError as e:
        return f"{type(e).__name__}: {e}", b""
    assert image.flags.c_contiguous and image.flags.owndata and image.flags.writeable
    return str(image.shape), image.tobytes()


def by_pillow(data: bytes) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "decode_sound", lambda *_: None)
        return outcome(data)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"restart_marker_blocks": 3}, {"quality": 100}])
def test_encodings(subsampling: int, progressive: bool, options: dict[str, Any], taken: list[bool]) -> None:
    for i, (width, height) in enumerate(SIZES):
        im = picture(width, height, i, smooth=i % 2 == 0)
        data = encode(im, subsampling=subsampling, progressive=progressive, **options)
        assert outcome(data) == by_pillow(data)
    assert taken == [True] * len(SIZES)


def test_other_sound_files(taken: list[bool]) -> None:
    rgb = encode(picture())
    files = [
        encode(picture(), keep_rgb=True, subsampling=0),  # components that are R, G, B already
        encode(picture(), icc_profile=bytes(range(256)) * 300),
        encode(picture(), comment=b"\xff\xd9\xff\xda" * 9),  # markers inside a segment
        encode(picture(), dpi=(300, 300), quality=1),
        encode(picture(), "MPO", save_all=True, append_images=[picture(seed=1)]),
        rgb + b"\0" * 100,
        rgb + b"\xff\xd8 and half of another picture",
        rgb[:2] + b"\xff" + rgb[2:],  # a fill byte
        rgb[:-2] + b"\xff\xd3\xff\xd4" + EOI,  # restart markers where none belong
        (cut := encode(picture(), progressive=True))[: cut.rindex(SOS)] + EOI,  # blurred, but all there
    ]
    for data in files:
        assert outcome(data) == by_pillow(data)
    assert taken == [True] * len(files)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("size", [(37, 23), (1, 1), (1, 9), (9, 1)])
def test_orientations(orientation: int, size: tuple[int, int], taken: list[bool]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(*size), exif=exif)
    assert outcome(data) == by_pillow(data) and taken == [True]


def _second_scan(data: bytes) -> bytes:
    return data[:-2] + data[data.index(SOS) :]


def _replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d[:1000],
        lambda d: d[:-2],
        lambda d: d[:-1],
        lambda d: d[: d.index(SOS)],
        lambda d: d[: d.index(SOS)] + EOI,
        lambda d: d[:1000] + b"\xff\xc0" + d[1000:],  # others take these: they stop at the last row
        lambda d: d[:1000] + b"\xff\xc4" + d[1000:],
        lambda d: d[:-2] + b"\xff\xc4\0\x08abcdef" + EOI,
        _second_scan,
        lambda d: _replaced(d, b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),  # 12 bits
        lambda d: _replaced(d, b"\xff\xc0\0\x11\x08", b"\xff\xc3\0\x11\x08"),  # lossless, by its name
    ],
)
def test_what_pillow_refuses_is_refused(change: Callable[[bytes], bytes], taken: list[bool]) -> None:
    data = change(encode(picture()))
    found = outcome(data)
    assert found == by_pillow(data) and found[0].startswith("ValueError")
    assert True not in taken


def test_progressive_and_cut() -> None:
    whole = encode(picture(100, 100), progressive=True)
    for at in range(2, len(whole), 97):
        for data in (whole[:at], whole[:at] + EOI):
            assert outcome(data) == by_pillow(data)


def test_what_is_left_to_pillow(taken: list[bool]) -> None:
    rgb = encode(picture())
    for data in (encode(picture().convert("L")), encode(picture().convert("CMYK"))):
        assert outcome(data) == by_pillow(data)
    assert not taken  # its header reader says so
    unsound = [
        rgb[:1000] + EOI,  # libjpeg fills the rest, and Pillow lets it
        rgb[:1000] + b"\xff\xd3" + rgb[1000:],
        _replaced(rgb, b"\xff\xc0", b"\xff\xc9"),  # arithmetic coding, by its name
    ]
    for data in unsound:
        found = outcome(data)
        assert found == by_pillow(data) and found[1]
    assert True not in taken


def test_size_limit_comes_first(taken: list[bool]) -> None:
    data = encode(picture(100, 50))
    with pytest.raises(ImageTooLarge, match="100x50"):
        decode_image(data, 0.004)
    assert not taken


def _mutated(data: bytes, rng: random.Random) -> bytes:
    """Byte flips, bit flips, cuts, strange markers, lost and repeated pieces; half of them in or after the scan."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        begin = max(0, out.find(SOS)) if rng.random() < 0.5 else 0
        at, kind = rng.randrange(begin, len(out)), rng.randrange(9)
        if kind == 0:
            out[at] = rng.randrange(256)
        elif kind == 1:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            out[at:] = EOI if at and rng.random() < 0.5 else b"\xff"
        elif kind == 3:
            out[at:at] = bytes([0xFF, rng.randrange(256)])
        elif kind == 4:
            out[at:at] = bytes([0xFF, rng.randrange(0xC0, 256), 0, rng.randrange(9)])
        elif kind == 5:
            out[at : at + rng.choice((1, 2, 30))] = b"\xff"
        elif kind == 6:
            out[at:at] = out[begin : begin + rng.choice((1, 30, 300))]
        elif kind == 7:
            markers = [i + 1 for i in range(len(out) - 1) if out[i] == 0xFF and out[i + 1]]
            out[rng.choice(markers or [at])] = rng.choice(
                (0, 0xC0, 0xC1, 0xC2, 0xC4, 0xC9, 0xD3, 0xD9, 0xDA, 0xDD, 0xFF)
            )
        else:
            out += rng.choice((b"\0", EOI, b"junk", bytes(out[:60])))
    return bytes(out)


@pytest.mark.parametrize("seed", range(6))
def test_broken_files_end_as_with_pillow_alone(seed: int, taken: list[bool]) -> None:
    rng = random.Random(seed)
    pixels_seen = 0
    for i in range(40):
        width, height = rng.choice(SIZES)
        options: dict[str, Any] = {
            "subsampling": rng.randrange(3),
            "progressive": i % 3 == 0,
            "quality": rng.choice((20, 75, 98)),
        }
        if rng.random() < 0.3:
            options["restart_marker_blocks"] = rng.choice((1, 4))
        whole = encode(picture(width, height, i, smooth=i % 2 == 0), **options)
        for _ in range(15):
            data = _mutated(whole, rng)
            want = by_pillow(data)
            assert outcome(data) == want, data.hex()
            pixels_seen += bool(want[1])
    assert 100 < pixels_seen < 500  # both ends are reached, and the library meets broken files too
    assert sum(taken) > 50


def test_another_libjpeg_is_noticed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    decoded = jpeg.decoded

    def other(data: bytes, size: tuple[int, int]) -> np.ndarray | None:
        found = decoded(data, size)
        return None if found is None else found ^ np.uint8(1)

    monkeypatch.setattr(jpeg, "decoded", other)
    data = encode(picture())
    with caplog.at_level(logging.WARNING):
        assert outcome(data) == by_pillow(data)
        outcome(data)
    assert len(caplog.records) == 1 and "simplejpeg" in caplog.text


def test_without_simplejpeg_pillow_does_it(monkeypatch: pytest.MonkeyPatch, taken: list[bool]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    data = encode(picture())
    assert outcome(data) == by_pillow(data) and taken == [False]


def test_threads() -> None:
    data = [encode(picture(200, 150, i)) for i in range(8)]
    want = [by_pillow(d) for d in data]
    found: dict[int, Outcome] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: outcome(data[i])})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(8)] == want

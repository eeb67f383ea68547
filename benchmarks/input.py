"""How fast one core turns JPEGs into the encoder's pixels, and how much memory the largest takes.

`python -m benchmarks.input [JPEG ...]` (a minute; without files: rendered pictures, 1500 x 2250, quality 92). Decoding
and the resize to SAM's 1024 pixels, by Pillow alone, as the official package's callers do it, and by maskmill; the
pixels are compared. Memory: the peak above what the process held before, with a JPEG of 20000 x 20000 pixels, each way
in a process of its own. Results: benchmarks/results/input.json.
"""

import argparse
import gc
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from benchmarks.pictures import pictures
from benchmarks.sides import memory_mb
from maskmill.sam.resize import by_pillow, resize
from maskmill.storage.files import at, to_json, write_bytes
from maskmill.storage.pixels import decode_image

RESULTS = Path(__file__).parent / "results" / "input.json"
SIDE, MAX_MPX, LARGE = 1024, 400, 20000
Pixels = np.ndarray


def pillow_decode(data: bytes) -> Pixels:
    """As the contract words it."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


DECODE: dict[str, Callable[[bytes], Pixels]] = {
    "pillow": pillow_decode,
    "maskmill": lambda data: decode_image(data, MAX_MPX),
}
RESIZE: dict[str, Callable[[Pixels, int, int], Pixels]] = {"pillow": by_pillow, "maskmill": resize}


def encoder_size(image: Pixels) -> tuple[int, int]:
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def timed(call: Callable[[], Pixels]) -> tuple[Pixels, float, float]:
    """What the call returns, its milliseconds, and those of this thread's CPU."""
    wall, cpu = time.perf_counter(), time.thread_time()
    made = call()
    return made, (time.perf_counter() - wall) * 1e3, (time.thread_time() - cpu) * 1e3


def speed(files: list[bytes], rounds: int) -> dict[str, Any]:
    """Medians over all files and rounds; the ways take turns on each file."""
    spent: dict[str, list[list[float]]] = {way: [] for way in DECODE}
    for n in range(rounds + 1):  # the first compiles and fills the caches
        for data in files:
            made = {}
            for way in DECODE:
                image, *decoding = timed(lambda: DECODE[way](data))  # noqa: B023
                size = encoder_size(image)
                small, *resizing = timed(lambda: RESIZE[way](image, *size))  # noqa: B023
                made[way] = (image, small)
                if n:
                    spent[way].append([*decoding, *resizing])
            assert all((a == b).all() for a, b in zip(*made.values(), strict=True)), "the pixels differ"
    out: dict[str, Any] = {}
    for way, rows in spent.items():
        decoding, decoding_cpu, resizing, resizing_cpu = (median(column) for column in zip(*rows, strict=True))
        out[way] = {
            "decode_ms": decoding,
            "resize_ms": resizing,
            "decode_cpu_ms": decoding_cpu,
            "resize_cpu_ms": resizing_cpu,
            "images_a_second_a_core": 1e3 / (decoding + resizing),
            "images_a_cpu_second": 1e3 / (decoding_cpu + resizing_cpu),
        }
    return out


def rendered(count: int) -> list[bytes]:
    return [encoded(image) for image in pictures(count, 1500, 2250)]


def encoded(image: Pixels, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=92, **options)
    return out.getvalue()


def peaks(folder: Path) -> dict[str, Any]:
    """MB of each way and step, for a large JPEG. Its pixels alone are 1,144."""
    out: dict[str, Any] = {}
    tile = np.tile(pictures(1, 1000, 1000)[0], (LARGE // 1000, LARGE // 1000, 1))
    for kind, progressive in (("baseline", False), ("progressive", True)):
        path = folder / f"{kind}.jpg"
        path.write_bytes(encoded(tile, progressive=progressive))
        for way in DECODE:
            command = [sys.executable, "-m", "benchmarks.input", "--peak", way, str(path)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            out.setdefault(kind, {})[way] = found
            print(json.dumps({kind: {way: found}}), flush=True)
    return out


def peak(way: str, path: Path) -> dict[str, int]:
    """MB above the start: at most while decoding, held by the pixels, at most while resizing."""
    Image.MAX_IMAGE_PIXELS = None
    small = encoded(pictures(1, 300, 400)[0])
    RESIZE[way](DECODE[way](small), 48, 64)  # all imports, and the compiled loops
    data = path.read_bytes()
    gc.collect()
    begin = memory_mb("VmRSS")
    image = DECODE[way](data)
    decoding, held = memory_mb("VmHWM") - begin, memory_mb("VmRSS") - begin
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    RESIZE[way](image, SIDE, SIDE)
    return {"decode_peak_mb": decoding, "pixels_mb": held, "resize_peak_mb": memory_mb("VmHWM") - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="JPEGs to measure instead of rendered pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="leave out the 20000 x 20000 JPEG (needs 6 GB)")
    parser.add_argument("--peak", choices=list(DECODE), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(json.dumps(peak(args.peak, args.files[0])))
        return
    from tests.parity.machine import machine

    found: dict[str, Any] = {"machine": machine()}
    cv2.setNumThreads(1)
    files = [path.read_bytes() for path in args.files] or rendered(8)
    found["files"] = {"count": len(files), "median_kb": round(median(len(data) for data in files) / 1e3)}
    found["speed"] = speed(files, args.rounds)
    print(json.dumps(found["speed"], indent=2), flush=True)
    if not args.no_memory:
        with tempfile.TemporaryDirectory() as folder:
            found["memory"] = peaks(Path(folder))
    RESULTS.parent.mkdir(exist_ok=True)
    write_bytes(at(RESULTS), to_json(found))
    print(RESULTS)


if __name__ == "__main__":
    main()

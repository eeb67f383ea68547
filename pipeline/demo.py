"""`make demo`: pictures made on the spot, packed as WebDataset, segmented by nano on Ray, and shown."""

import argparse
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from maskmill.training.photos import free_pictures
from maskmill.training.scenes import SceneConfig, Textures, draw_scene

PHOTOS = ("coins", "cat", "coffee", "rocket", "astronaut", "camera")  # free pictures inside scikit-image's wheel
SIZES = ((640, 480), (480, 640), (600, 600), (640, 400))  # (width, height)


def demo_images(count: int, seed: int = 7) -> dict[str, np.ndarray]:
    """`count` pictures: scikit-image's free photographs first, then drawn scenes."""
    rng = np.random.default_rng(seed)
    textures = Textures(free_pictures())
    photographs = SceneConfig(closeup=0, crowd=0, tiling=0, cells=0)
    images = {name: shrink(to_rgb(getattr(skimage.data, name)())) for name in PHOTOS[: count // 2]}
    for i in range(count - len(images)):
        width, height = SIZES[i % len(SIZES)]
        scene = draw_scene(rng, photographs, textures, max(width, height)).image
        images[f"scene-{i:02d}"] = scene[-height:, :width]  # things stand below
    return images


def to_rgb(photo: np.ndarray) -> np.ndarray:
    """Grey becomes three equal channels."""
    return np.repeat(photo[..., None], 3, axis=2) if photo.ndim == 2 else photo[..., :3]


def shrink(photo: np.ndarray) -> np.ndarray:
    """At most 640 pixels long."""
    image = Image.fromarray(photo)
    image.thumbnail((640, 640))
    return np.array(image)


def pack(images: dict[str, np.ndarray], folder: Path, per_shard: int) -> None:
    """WebDataset shards of JPEGs."""
    folder.mkdir(parents=True, exist_ok=True)
    items = list(images.items())
    for start in range(0, len(items), per_shard):
        with tarfile.open(folder / f"demo-{start // per_shard:04d}.tar", "w") as tar:
            for key, pixels in items[start : start + per_shard]:
                data = io.BytesIO()
                Image.fromarray(pixels).save(data, "JPEG", quality=92)
                member = tarfile.TarInfo(f"{key}.jpg")
                member.size = data.tell()
                data.seek(0)
                tar.addfile(member, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    parser.add_argument("--images", type=int, default=12)
    args = parser.parse_args()
    shards, build = args.out / "shards", args.out / "masks"
    if not shards.exists():
        pack(demo_images(args.images), shards, per_shard=4)
    maskmill = [sys.executable, "-m", "maskmill.pipeline.cli"]
    command = [*maskmill, "generate", str(shards), "--out", str(build), "--set", "generate.points_per_side=16"]
    print(" ".join(["maskmill", *command[3:]]), flush=True)
    subprocess.run(command, check=True)
    subprocess.run([*maskmill, "verify", str(build)], check=True)


if __name__ == "__main__":
    main()

"""Real photographs with masks as training material: read, cut out, pasted onto others, and their natural textures.

Photos come as WebDataset tars in SA-1B form: `<key>.jpg|png` and `<key>.json` with COCO RLE annotations.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from pycocotools import mask as coco_mask

from maskmill.errors import UserError
from maskmill.training.scenes import Canvas, Image, Mask, Rng, Sample, SceneConfig, Textures, recolour
from maskmill.training.scenes.canvas import Box
from maskmill.training.scenes.degrade import photograph
from maskmill.training.scenes.lighting import cast_shadow, random_light

# pictures inside scikit-image's wheel that are public domain, CC0 or without known restrictions
FREE_PICTURES = (
    "astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "hubble_deep_field",
    "immunohistochemistry", "moon", "retina", "rocket",
)  # fmt: skip


@dataclass(frozen=True)
class Photo:
    """`image` H x W x 3 uint8 RGB, `masks` K x H x W bool by people, `things` K bool: countable objects."""

    key: str
    image: NDArray[np.uint8]
    masks: Mask
    things: NDArray[np.bool_]


def read_tar(path: str | Path) -> Iterator[Photo]:
    """Every photo of one tar; crowd regions are left out. Raises UserError for a file that is no such tar."""
    if not Path(path).is_file():
        raise UserError(f"{str(path)!r} is not a file: expected a WebDataset tar of photos and masks")
    try:
        with tarfile.open(path) as tar:
            members = {m.name: m for m in tar if m.isfile()}
            for name in sorted(n for n in members if n.endswith(".json")):
                key = name.removesuffix(".json")
                picture = next((key + e for e in (".jpg", ".jpeg", ".png") if key + e in members), None)
                if picture is None:
                    raise UserError(f"{str(path)!r}: {name} has no picture beside it")
                record = json.loads(_bytes(tar, members[name]))
                image = np.asarray(PilImage.open(io.BytesIO(_bytes(tar, members[picture]))).convert("RGB"))
                rows = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
                if rows:
                    rles = [{**a["segmentation"], "counts": a["segmentation"]["counts"].encode()} for a in rows]
                    masks = coco_mask.decode(rles).transpose(2, 0, 1).astype(bool)
                    things = np.array([bool(a.get("isthing", True)) for a in rows])
                    yield Photo(key, image, masks, things)
    except tarfile.TarError as e:
        raise UserError(f"{str(path)!r} cannot be read as a tar: {e}") from e


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle = tar.extractfile(member)
    assert handle is not None  # only regular files were listed
    return handle.read()


def resized(photo: Photo, long_side: int) -> Photo:
    """The photo with its long side at `long_side` pixels."""
    h, w = photo.image.shape[:2]
    scale = long_side / max(h, w)
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    image = cv2.resize(photo.image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    masks = [cv2.resize(m.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) > 127 for m in photo.masks]
    return Photo(photo.key, image, np.stack(masks), photo.things)


def free_pictures() -> list[NDArray[np.uint8]]:
    """scikit-image's free pictures as H x W x 3 uint8."""
    try:
        from skimage import data as skimage_data
    except ImportError as e:
        raise UserError("training needs scikit-image: pip install 'maskmill[train]'") from e
    pictures = [getattr(skimage_data, name)() for name in FREE_PICTURES]
    pictures += list(skimage_data.stereo_motorcycle()[:2])  # type: ignore[no-untyped-call]
    grey = [np.repeat(p[..., None], 3, axis=2) if p.ndim == 2 else p[..., :3] for p in pictures]
    return [np.ascontiguousarray(p, dtype=np.uint8) for p in grey]


def superpixels(photo: Photo, scale: float) -> Mask:
    """K x H x W regions of the image alone (Felzenszwalb & Huttenlocher 2004), small ones left out."""
    from skimage.segmentation import felzenszwalb

    h, w = photo.image.shape[:2]
    labels = felzenszwalb(photo.image, scale=scale, sigma=0.8, min_size=h * w // 5000)
    sizes = np.bincount(labels.ravel())
    kept = np.nonzero(sizes > h * w // 4000)[0]
    return labels[None] == kept[:, None, None]


def paste_scene(rng: Rng, photos: Sequence[Photo], textures: Textures, size: int) -> Sample:
    """Cut-out things and stuff on another photo (whose own masks stay targets) or on a texture."""
    if rng.random() < 0.5:
        back = photos[int(rng.integers(len(photos)))]
        image, masks = square_crop(rng, back, size)
        canvas = Canvas(recolour(rng, image) if rng.random() < 0.3 else image, masks)
    else:
        canvas = Canvas(textures.render(rng, textures.material(rng, 0.7, even=True), size, size))
        canvas.claim((0, size, 0, size), np.ones((size, size), bool))
    light, count = random_light(rng), int(rng.integers(2, 14))
    for side in np.sort(np.exp(rng.uniform(np.log(size * 0.05), np.log(size * 0.75), count)))[::-1]:
        pasted = cut_out(rng, photos, float(side), size)
        if pasted is not None:
            box, alpha, colours = pasted
            if rng.random() < 0.35:
                cast_shadow(rng, light, canvas.image[box[0] : box[1], box[2] : box[3]], alpha, lying=False)
            canvas.blend(box, colours, alpha)
            canvas.claim(box, alpha > 0.5)
    return canvas.finish(photograph(rng, SceneConfig(), textures, canvas.image))


def square_crop(rng: Rng, photo: Photo, size: int) -> tuple[NDArray[np.float32], Mask]:
    """A random square of the photo, size x size: float32 RGB in [0, 1] and its masks."""
    h, w = photo.image.shape[:2]
    side = int(min(h, w) * rng.uniform(0.5, 1))
    y, x = int(rng.integers(h - side + 1)), int(rng.integers(w - side + 1))
    image = cv2.resize(photo.image[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)
    cut = photo.masks[:, y : y + side, x : x + side].astype(np.uint8)
    masks = [cv2.resize(m, (size, size), interpolation=cv2.INTER_NEAREST) > 0 for m in cut]
    return np.asarray(image, np.float32) / np.float32(255), np.stack(masks)


def cut_out(rng: Rng, photos: Sequence[Photo], side: float, size: int) -> tuple[Box, Image, Image] | None:
    """A segment of some photo, turned, flipped, recoloured, its long side about `side` pixels.

    Returns its window on a size x size canvas, and the alpha and the pixels over it; None for a sliver.
    """
    photo = photos[int(rng.integers(len(photos)))]
    index = np.nonzero(photo.things)[0] if rng.random() < 0.75 and photo.things.any() else np.arange(len(photo.masks))
    mask = photo.masks[int(rng.choice(index))]
    ys, xs = np.nonzero(mask)
    if len(ys) < 100:
        return None
    y0, y1, x0, x1 = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    zoom = min(side / max(y1 - y0, x1 - x0), 2.5)
    turn = cv2.getRotationMatrix2D((0.0, 0.0), float(rng.normal(0, 15)), zoom)
    turn[:, 0] *= rng.choice([-1, 1])
    corners = np.array([[0, 0], [x1 - x0, 0], [0, y1 - y0], [x1 - x0, y1 - y0]]) @ turn[:, :2].T
    low, high = corners.min(0), corners.max(0)
    turn[:, 2] = -low
    w, h = (int(np.clip(v, 4, size)) for v in np.ceil(high - low))
    patch = cv2.warpAffine(photo.image[y0:y1, x0:x1], turn, (w, h), borderMode=cv2.BORDER_REFLECT)
    local = cv2.warpAffine(mask[y0:y1, x0:x1].astype(np.uint8) * 255, turn, (w, h))
    oy, ox = int(rng.integers(-h // 3, size - h // 2)), int(rng.integers(-w // 3, size - w // 2))
    box = (max(0, oy), min(size, oy + h), max(0, ox), min(size, ox + w))
    if box[1] <= box[0] or box[3] <= box[2]:
        return None
    seen = slice(box[0] - oy, box[1] - oy), slice(box[2] - ox, box[3] - ox)
    colours = np.asarray(patch[seen], np.float32) / np.float32(255)
    alpha = np.asarray(local[seen], np.float32) / np.float32(255)
    return box, alpha, recolour(rng, colours) if rng.random() < 0.4 else colours

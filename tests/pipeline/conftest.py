"""Small image sets and settings for whole builds with the real nano."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image, ImageDraw

from maskmill.config import Config, resolve
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.engines.ray import RayEngine
from maskmill.pipeline.generate import close_build, new_job, open_build
from maskmill.pipeline.recipe import Recipe
from maskmill.pipeline.run import run_tasks
from maskmill.pipeline.unit import Task
from maskmill.sam.build import checkpoint_sha256
from maskmill.storage.build import Build

QUICK = ("generate.points_per_side=5", "run.unit_size=3")


def drawing(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Plain shapes on a plain ground: quick to make, and something to find."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(v) for v in rng.integers(0, 90, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = int(rng.integers(0, size[0])), int(rng.integers(0, size[1]))
        r = int(rng.integers(8, 24))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(v) for v in rng.integers(100, 255, 3)))
    return image


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            add(tar, name, data)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven drawings of several sizes, one in a subfolder, and a text file that calls itself a JPEG."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    sizes = [(96, 72), (72, 96), (120, 60), (64, 64), (97, 71), (60, 90), (80, 80)]
    for i, size in enumerate(sizes):
        drawing(i, size).save(folder / ("sub" if i == 3 else ".") / f"{i}.png")
    (folder / "bad.jpg").write_text("not a picture")
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tars of three drawings."""
    folder = tmp_path_factory.mktemp("shards")
    for s in range(3):
        make_tar(folder / f"{s:04d}.tar", {f"{s}{i}.png": png(drawing(10 * s + i)) for i in range(3)})
    return folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray for all tests."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


def config(*assignments: str) -> Config:
    return resolve(assignments=(*QUICK, *assignments))


def recipe_for(images: str | Path, cfg: Config | None = None, candidates: bool = True) -> Recipe:
    return Recipe(cfg or config(), checkpoint_sha256("nano"), str(images), "default", candidates)


def build(
    images: str | Path,
    out: Path,
    cfg: Config | None = None,
    engine: str = "local",
    append: bool = False,
    candidates: bool = True,
) -> Build:
    """What `maskmill generate` does, without the words."""
    recipe = recipe_for(images, cfg, candidates)
    opened = open_build(recipe, out, append)
    runner = LocalEngine(inside=True) if engine == "local" else RayEngine(recipe.config.run)
    if opened.pending:
        job = new_job(recipe, opened.build, "cpu")
        run_tasks(job, [Task(unit) for unit in opened.pending], runner, print)
    assert close_build(opened.build) == "closed", "the build is not complete"
    return Build(out)


def tables(made: Build) -> dict[str, pa.Table]:
    """Every table in one order, ready to compare."""
    sort = [("image_id", "ascending")]
    both = [*sort, ("mask_id", "ascending")]
    return {
        "images": made.images().sort_by(sort),
        "candidates": made.candidates().sort_by(both),
        "masks": made.masks().sort_by(both),
    }


@pytest.fixture(scope="session")
def reference(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """The tables of an undisturbed local build of `photos`."""
    made = tables(build(photos, tmp_path_factory.mktemp("reference") / "b"))
    assert made["masks"].num_rows > 7 and made["candidates"].num_rows > made["masks"].num_rows
    return made


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings, one in a subfolder, one that its EXIF turns, and a text file that calls itself a JPEG."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "sub").mkdir()
    drawing(0, (96, 72)).save(folder / "0.png")
    drawing(3, (64, 64)).save(folder / "sub" / "3.png")
    drawing(5, (120, 60)).save(folder / "0.bmp")
    turned = Image.Exif()
    turned[0x0112] = 6
    drawing(4, (97, 71)).save(folder / "turned.jpg", exif=turned)
    (folder / "bad.jpg").write_text("not a picture")
    return folder


@pytest.fixture(scope="session")
def made(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A build of `pictures` by nano, in two units."""
    found = build(pictures, tmp_path_factory.mktemp("made") / "b")
    assert found.masks().num_rows > 6 and len(found.manifests()) == 2
    return found

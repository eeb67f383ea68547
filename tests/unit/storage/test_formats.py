"""SA-1B and COCO records, label maps, pictures and whole files: small parts of the exchange with other tools."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmill.masks.rle import encode
from maskmill.storage.coco import Categories, coco_json, file_name_of, from_coco, to_coco_image, to_coco_mask
from maskmill.storage.exports import picture
from maskmill.storage.files import at, to_json
from maskmill.storage.foreign import ForeignImage, Grid, foreign_rows, size_of
from maskmill.storage.labelmaps import MOST, OverlapError, encode_labels, label_map, overlapping
from maskmill.storage.pixels import extension_of, orientation_of
from maskmill.storage.sa1b import from_sa1b, to_sa1b
from maskmill.storage.whole import open_whole

H, W = 40, 50
IMAGE = {"image_id": 5, "shard": "a.tar", "key": "k", "width": W, "height": H, "sha256": "00", "meta": None}


def rect(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def rows(*masks: np.ndarray, **more: Any) -> list[dict[str, Any]]:
    """Rows of masks 0, 1, ...: with every column set; `more` changes all of them."""
    tree = {
        "annotations": [{"id": i, "segmentation": {"size": [H, W], "counts": encode(m)}} for i, m in enumerate(masks)]
    }
    found = foreign_rows(from_sa1b(json.dumps(tree).encode()), 5, Grid(H, W, 1)).to_pylist()
    scored = {"predicted_iou": 0.9523417353630066, "stability_score": 0.96875, "point_x": 940.9375, "point_y": 34.5625}
    crop = {"crop_x": 0, "crop_y": 1, "crop_w": W, "crop_h": H - 1}
    return [{**row, **scored, **crop, "source": "auto", "model": "nano-1", **more} for row in found]


# ---- SA-1B


def test_sa1b_fields_are_those_of_the_published_files() -> None:
    """Order and types as in sa_1.json."""
    tree = to_sa1b(IMAGE, rows(rect(3, 4, 10, 20)), "sa_5.jpg")
    assert json.dumps(tree["image"]) == '{"image_id": 5, "width": 50, "height": 40, "file_name": "sa_5.jpg"}'
    (mask,) = tree["annotations"]
    counts = json.dumps(encode(rect(3, 4, 10, 20)))
    assert json.dumps(mask) == (
        '{"bbox": [3.0, 4.0, 7.0, 16.0], "area": 136, "segmentation": {"size": [40, 50], "counts": ' + counts + "}, "
        '"predicted_iou": 0.9523417353630066, "point_coords": [[940.9375, 34.5625]], '
        '"crop_box": [0.0, 1.0, 50.0, 39.0], "id": 0, "stability_score": 0.96875}'
    )


def test_sa1b_there_and_back() -> None:
    """Every column that SA-1B has; absent ones stay absent; meta comes along."""
    absent = dict.fromkeys(["predicted_iou", "stability_score", "point_x", "point_y", *(f"crop_{c}" for c in "xywh")])
    other = {**rows(rect(0, 0, 5, 5))[0], **absent, "mask_id": 4}
    first = [*rows(rect(3, 4, 10, 20), meta='{"category": "é"}'), other]
    data = json.dumps(to_sa1b({**IMAGE, "meta": '{"licence": 1}'}, first, "x.jpg")).encode()
    image = from_sa1b(data)
    assert (image.image_id, image.width, image.height, image.meta) == (5, W, H, {"licence": 1})
    back = foreign_rows(image, 5, Grid(H, W, 1)).to_pylist()
    ours = {"source": "import", "model": None}
    as_stored = [np.float32(r["predicted_iou"]) if r["predicted_iou"] is not None else None for r in first]
    assert [np.float32(b["predicted_iou"]) if b["predicted_iou"] is not None else None for b in back] == as_stored
    assert [{**b, "predicted_iou": 0} for b in back] == [{**f, "predicted_iou": 0, **ours} for f in first]


def test_foreign_fields_of_sa1b_json_are_kept() -> None:
    """Unknown fields; several points or a crop that is not in whole pixels, which no column can hold."""
    rle = {"size": [H, W], "counts": encode(rect(0, 0, 5, 5))}
    odd = {
        "id": 1,
        "segmentation": rle,
        "category": "cat",
        "point_coords": [[1, 2], [3, 4]],
        "crop_box": [0, 0.5, 9, 9],
    }
    image = from_sa1b(json.dumps({"image": {"source": "x"}, "annotations": [odd]}).encode())
    assert image.image_id is None and image.meta == {"source": "x"}
    want = {"category": "cat", "point_coords": [[1, 2], [3, 4]], "crop_box": [0, 0.5, 9, 9]}
    assert image.masks[0].meta == want and image.masks[0].point is None and image.masks[0].crop is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"annotations": [{"id": 1', "broken JSON"),
        (b"\xff\xfe", "broken JSON"),
        (b"[]", "no list of 'annotations'"),
        (b'{"annotations": {}}', "no list of 'annotations'"),
        (b'{"annotations": [3]}', "no list of 'annotations'"),
        (b'{"image": 3, "annotations": []}', "'image' is '3'"),
        (b'{"image": {"image_id": "x"}, "annotations": []}', "image has image_id 'x'"),
        (b'{"annotations": [{"segmentation": {}}]}', "annotation number 1 has id 'None'"),
        (b'{"annotations": [{"id": true}]}', "has id 'True'"),
        (b'{"annotations": [{"id": 99999999999999999999}]}', "expected a whole number"),
        (b'{"annotations": [{"id": 1, "predicted_iou": "high"}]}', "annotation 1: predicted_iou is 'high'"),
    ],
)
def test_broken_sa1b_is_named(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        foreign_rows(from_sa1b(data), 1, Grid(H, W, 1))


# ---- COCO


def test_coco_records() -> None:
    """COCO's own box, ids from 1, ours in meta."""
    (row,) = rows(rect(3, 4, 10, 20))
    categories = Categories()
    categories.add(None)
    categories.settle()
    record = to_coco_mask(row, 7, 2, categories)
    assert record["bbox"] == [3.0, 4.0, 8.0, 17.0] and (record["id"], record["image_id"]) == (7, 2)
    assert record["category_id"] == 1 and record["iscrowd"] == 0 and record["meta"]["mask_id"] == 0
    assert to_coco_image(IMAGE, 2, "k.jpg")["meta"] == {"image_id": 5, "shard": "a.tar", "key": "k"}
    empty = to_coco_mask({**row, "area": 0, "bbox_w": 0.0, "bbox_h": 0.0}, 7, 2, categories)
    assert empty["bbox"] == [0.0, 0.0, 0.0, 0.0]


def test_coco_there_and_back() -> None:
    """Ids, scores, prompts, category, crowd and meta."""
    meta = '{"category": "cat", "category_id": 17, "iscrowd": 1, "attributes": {"x": [1]}}'
    first = [*rows(rect(3, 4, 10, 20), meta=meta), {**rows(rect(0, 0, 5, 5))[0], "mask_id": 4}]
    categories = Categories()
    for row in first:
        categories.add(row["meta"])
    categories.settle()
    assert {c["id"]: c["name"] for c in categories.listed()} == {17: "cat", 18: "object"}
    records = [to_coco_mask(row, i + 1, 1, categories) for i, row in enumerate(first)]
    assert [r["category_id"] for r in records] == [17, 18] and records[0]["iscrowd"] == 1
    names = {c["id"]: c["name"] for c in categories.listed()}
    image = from_coco(
        json.loads(json.dumps(to_coco_image(IMAGE, 1, "x"))), json.loads(json.dumps(records)), names, True
    )
    assert image.image_id == 5 and image.meta == {"shard": "a.tar", "key": "k"}
    made_by = {"source": "auto", "model": "nano-1"}
    assert [m.meta for m in image.masks] == [made_by | json.loads(meta), made_by]
    back = foreign_rows(image, 5, Grid(H, W, 1)).to_pylist()
    same = [
        "image_id",
        "mask_id",
        "counts",
        "area",
        "bbox_x",
        "stability_score",
        "point_x",
        "point_y",
        "crop_w",
        "crop_y",
    ]
    assert [[b[n] for n in same] for b in back] == [[f[n] for n in same] for f in first]


def test_categories_never_share_an_id() -> None:
    """Names without an id are numbered last, behind every id that stands anywhere."""
    categories = Categories([{"id": 3, "name": "dog", "supercategory": "animal"}])
    for meta in (None, '{"category": "tree"}', '{"category": "cat", "category_id": 4}', '{"category": "dog"}'):
        categories.add(meta)
    categories.settle()
    assert {c["id"]: c["name"] for c in categories.listed()} == {3: "dog", 4: "cat", 5: "object", 6: "tree"}
    assert [categories.find(t) for t in ({}, {"category": "dog"}, {"category_id": 4})] == [5, 3, 4]


def test_a_category_that_another_tool_gave_wins() -> None:
    """Our export, labelled elsewhere, comes back with its labels."""
    (row,) = rows(rect(3, 4, 10, 20))
    categories = Categories()
    categories.add(None)
    categories.settle()
    record = {**to_coco_mask(row, 1, 1, categories), "category_id": 9, "iscrowd": 1}
    image = from_coco({"id": 1, "meta": {"image_id": 5}}, [record], {1: "object", 9: "cat"}, True)
    found = image.masks[0].meta
    assert (found["category"], found["category_id"], found["iscrowd"]) == ("cat", 9, 1)


def test_records_that_another_tool_added_to_our_file() -> None:
    """Their own ids count through the file, so they get free ones; what it added to ours is kept."""
    categories = Categories()
    categories.add(None)
    categories.settle()
    one = {**rows(rect(3, 4, 10, 20))[0], "mask_id": 3}
    ours = {**to_coco_mask(one, 1, 1, categories), "attributes": {"checked": True}}
    theirs = [{"id": n, "segmentation": ours["segmentation"], "category_id": 1} for n in (3, 7)]
    image = from_coco({"id": 1, "meta": {"image_id": 5}, "license": 2}, [ours, *theirs], {1: "object"}, True)
    assert image.broken is None and [m.mask_id for m in image.masks] == [3, 4, 5]
    assert image.masks[0].meta["attributes"] == {"checked": True} and image.meta == {"license": 2}


def test_names_that_lead_elsewhere_are_refused() -> None:
    """A JSON from anywhere must not bring in files from beside its images."""
    for name in ("../secret.png", "a/../../b.png", "/etc/passwd", "a\\..\\b.png"):
        with pytest.raises(ValueError, match="it leads out of the images' folder"):
            file_name_of({"id": 1, "file_name": name})
    assert file_name_of({"id": 1, "file_name": "a/..b.png"}) == "a/..b.png"


def test_half_of_a_surrogate_pair_is_no_end() -> None:
    """JSON may hold one, UTF-8 not: an emoji cut in half stays escaped."""
    half = json.loads('{"caption": "x\\ud83d"}')
    pieces = b"".join(coco_json({"info": half}, [half], [half]))
    assert json.loads(pieces) == {"info": half, "images": [half], "annotations": [half]}
    assert json.loads(to_json(half)) == half
    (mask,) = rows(rect(0, 0, 5, 5))
    with pytest.raises(ValueError, match="its RLE has size") as e:
        size_of({"size": half["caption"], "counts": mask["counts"]})
    str(e.value).encode()


def coco_image(**annotation: Any) -> ForeignImage:
    rle = {"size": [H, W], "counts": encode(rect(0, 0, 5, 5))}
    return from_coco({"id": 3, "license": 2}, [{"id": 1, "segmentation": rle, **annotation}], {1: "cat"}, False)


def test_foreign_coco_fields() -> None:
    image = coco_image(category_id=1, iscrowd=0, area=36.5, bbox=[0, 0, 6, 6], attributes={"occluded": True})
    assert image.image_id == 3 and image.meta == {"license": 2}
    assert image.masks[0].meta == {"attributes": {"occluded": True}, "category": "cat", "category_id": 1}
    assert coco_image().masks[0].meta == {}  # no category at all is no error
    assert coco_image(iscrowd=1).masks[0].meta == {"iscrowd": 1}
    bare = from_coco({"id": 3}, [{"id": 1, "segmentation": [], "category_id": 8}], {}, False)
    assert bare.masks[0].meta == {"category_id": 8}  # of a file without categories
    broken = coco_image(category_id=8)
    assert broken.image_id == 3 and broken.masks == []
    assert broken.broken == "annotation 1: its category_id '8' is not among the file's categories"


# ---- label maps


def test_label_maps() -> None:
    first, second = rows(rect(0, 0, 5, 5), rect(6, 0, 9, 9))
    labels = label_map(H, W, [first, second])
    assert labels.dtype == np.uint16 and (labels == 1).sum() == 36 and (labels == 2).sum() == 40
    back = np.asarray(Image.open(io.BytesIO(encode_labels(labels))))
    assert (back == labels).all() and not overlapping([first, second])
    assert not label_map(H, W, []).any() and not overlapping([]) and not overlapping([first])


def test_overlaps_are_found_both_ways() -> None:
    some = rows(rect(0, 0, 5, 5), rect(20, 20, 30, 30), rect(5, 5, 9, 9))
    assert overlapping(some)
    with pytest.raises(OverlapError, match="masks 0 and 2 overlap \\(1 pixels"):
        label_map(H, W, some)
    with pytest.raises(ValueError, match="more than 65535"):
        label_map(H, W, [{**some[0], "counts": encode(np.zeros((H, W), bool)), "area": 0}] * (MOST + 1))


# ---- pictures, whole files


def encoded(format: str, orientation: int = 1) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    pixels = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(out, format, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize(
    ("format", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"), ("BMP", "bmp")]
)
def test_extensions(format: str, extension: str) -> None:
    assert extension_of(encoded(format)) == extension


def test_pictures_keep_their_bytes_or_are_turned() -> None:
    plain, turned = encoded("JPEG"), encoded("JPEG", 6)
    assert orientation_of(turned) == 6 and picture(turned, False, 1).data == turned
    assert picture(turned, False, 1).orientation == 6
    assert picture(plain, True, 1).data == plain
    upright = picture(turned, True, 1)
    shown = Image.open(io.BytesIO(upright.data))
    assert (upright.extension, upright.orientation, shown.size) == ("png", 1, (4, 6))


def test_a_whole_file_or_none(tmp_path: Path) -> None:
    path = at(tmp_path / "sub" / "x.tar")
    with pytest.raises(RuntimeError), open_whole(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert list((tmp_path / "sub").iterdir()) == []
    for data in (b"first", b"second"):
        with open_whole(path) as file:
            file.write(data)
        assert path.read_bytes() == data
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["x.tar"]

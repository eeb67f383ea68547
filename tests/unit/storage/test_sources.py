import hashlib
import itertools
import os
import random
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.errors import UserError
from maskmill.storage.sources import FileStat, Item, count_items, image_id, read_items, scan

_names = itertools.count()


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def names(images: str | Path) -> list[str]:
    return [s.name for s in scan(str(images)).shards]


def refused(images: str | Path, *words: str) -> None:
    with pytest.raises(UserError) as e:
        scan(str(images))
    assert "\n" not in str(e.value)
    for word in words:
        assert word in str(e.value)


@pytest.fixture
def memory() -> str:
    """The URL of a fresh folder in memory."""
    url = f"memory://test_sources_{next(_names)}"
    fsspec.filesystem("memory").makedirs(url.removeprefix("memory:/"))
    return url


def put(url: str, **files: bytes) -> None:
    fs = fsspec.filesystem("memory")
    for name, data in files.items():
        fs.pipe(f"{url}/{name}".replace("__", "/").removeprefix("memory:/").replace("DOT", "."), data)


def test_image_id() -> None:
    digest = hashlib.sha256(b"a/x.tar\0k\xc3\xa9").digest()
    assert image_id("a/x.tar", "ké") == int.from_bytes(digest[:8], "big") // 2 < 1 << 63


# ---- folders of images


def test_folder(tmp_path: Path) -> None:
    fill(
        tmp_path, "b.JPG", "a/z.png", "a.b/c.tiff", "readme.txt", ".hidden.jpg", ".git/x.jpg", "a/.d/x.jpg", "x.jpg.txt"
    )
    found = scan(str(tmp_path))
    assert (found.kind, found.url) == ("folder", str(tmp_path))
    (shard,) = found.shards
    assert (shard.name, shard.url, shard.version) == (".", str(tmp_path), "")
    files = shard.files or ()
    assert [f.key for f in files] == ["a.b/c.tiff", "a/z.png", "b.JPG"]
    assert files[2] == FileStat("b.JPG", 5, str((tmp_path / "b.JPG").stat().st_mtime_ns))
    assert shard.bytes == sum(f.bytes for f in files)
    assert count_items("folder", shard.url) == 3


def test_folder_given_in_other_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "in/a.jpg")
    monkeypatch.chdir(tmp_path)
    want = scan(str(tmp_path / "in"))
    for images in ("in", "in/", "./in", f"file://{tmp_path}/in", f"{tmp_path}/in/../in/"):
        assert scan(images) == want


def test_read_folder(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b/c.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    keys = ["b/c.jpg", "gone.jpg", "a.jpg", "empty.jpg", "folder.jpg", "pipe.jpg", "a.jpg/x.jpg"]
    items = list(read_items("folder", str(tmp_path), keys=keys))
    assert [i.key for i in items] == keys
    assert [i.data for i in items] == [b"b/c.jpg", None, b"a.jpg", b"", None, None, None]
    assert [i.error is None for i in items] == [True, False, True, True, False, False, False]
    assert items[1].error == "the file cannot be read: No such file or directory"
    with pytest.raises(ValueError):
        list(read_items("folder", str(tmp_path)))


def test_symlinks(tmp_path: Path) -> None:
    fill(tmp_path / "in", "a.jpg", "s/b.jpg")
    fill(tmp_path / "out", "c.jpg")
    for link, to in {
        "in/loop": ".",
        "in/up": "..",
        "in/s/top": "../../in",
        "in/other": "../out",
        "in/again": "s",
        "in/self": "self",
        "out/back": "../in",
        "in/gone.jpg": "nowhere.jpg",
        "in/link.jpg": "../out/c.jpg",
    }.items():
        (tmp_path / link).symlink_to(to)
    (shard,) = scan(str(tmp_path / "in")).shards
    assert [f.key for f in shard.files or ()] == ["a.jpg", "gone.jpg", "link.jpg", "other/c.jpg", "s/b.jpg"]
    keys = [f.key for f in shard.files or ()]
    assert [i.data for i in read_items("folder", shard.url, keys=keys)] == [
        b"a.jpg",
        None,
        b"c.jpg",
        b"c.jpg",
        b"s/b.jpg",
    ]


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"1")
    ((file,),) = [s.files or () for s in scan(str(tmp_path)).shards]
    assert file.key == "caf\\xe9.jpg"
    assert list(read_items("folder", str(tmp_path), keys=[file.key])) == [Item(file.key, b"1", None)]


# ---- tars and Parquet files


def test_folder_of_tars(tmp_path: Path) -> None:
    fill(tmp_path, "b.tar", "a/c.TAR", "readme.md")
    found = scan(str(tmp_path))
    assert (found.kind, [s.name for s in found.shards]) == ("tar", ["a/c.TAR", "b.tar"])
    shard = found.shards[1]
    assert (shard.url, shard.bytes, shard.files) == (str(tmp_path / "b.tar"), 5, None)
    assert shard.version == str((tmp_path / "b.tar").stat().st_mtime_ns)


def test_single_files(tmp_path: Path) -> None:
    fill(tmp_path, "b.tar", "a.parquet", "[x]{1}.tar")
    assert (scan(str(tmp_path / "b.tar")).kind, names(tmp_path / "b.tar")) == ("tar", ["b.tar"])
    assert (scan(str(tmp_path / "a.parquet")).kind, names(tmp_path / "a.parquet")) == ("parquet", ["a.parquet"])
    assert names(tmp_path / "[x]{1}.tar") == ["[x]{1}.tar"]


def test_globs_and_braces(tmp_path: Path) -> None:
    fill(tmp_path, "a/x-0008.tar", "a/x-0009.tar", "a/x-0010.tar", "b/x-0008.tar", "a/deep/y.tar", "a/.x-1.tar")
    assert names(tmp_path / "a/*.tar") == ["x-0008.tar", "x-0009.tar", "x-0010.tar"]
    assert names(tmp_path / "*/x-000?.tar") == ["a/x-0008.tar", "a/x-0009.tar", "b/x-0008.tar"]
    assert names(tmp_path / "**/y.tar") == ["a/deep/y.tar"]
    assert names(tmp_path / "a/x-00[01]8.tar") == ["x-0008.tar"]
    assert names(tmp_path / "a/x-{0008..0010}.tar") == ["x-0008.tar", "x-0009.tar", "x-0010.tar"]
    assert names(tmp_path / "a/x-{0010..0008}.tar") == ["x-0008.tar", "x-0009.tar", "x-0010.tar"]
    assert names(tmp_path / "{a,b}/x-0008.tar") == ["a/x-0008.tar", "b/x-0008.tar"]
    assert names(tmp_path / "{a/x-{0008,0009},b/x-0008}.tar") == ["a/x-0008.tar", "a/x-0009.tar", "b/x-0008.tar"]
    assert names(tmp_path / "{a,b}/*.tar")[-1] == "b/x-0008.tar"
    assert scan(str(tmp_path / "a/*.tar")).shards[0].url == str(tmp_path / "a/x-0008.tar")
    refused(tmp_path / "a/x-{0008..0011}.tar", "x-0011.tar", "no such file")
    refused(tmp_path / "{a,c}/*.tar", "c/*.tar")
    refused(tmp_path / "a/*.tgz", "nothing matches")
    refused(tmp_path / "nowhere/*.tar", "nothing matches")
    refused(tmp_path / "a/x-{8}.tar", "{8}")
    refused(tmp_path / "a/x-{0..99999999}.tar", "narrow")


def test_refusals(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such file or folder", str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty")
    refused(fill(tmp_path / "text", "a.txt", "b.txt", "c"), "no images", "2 .txt", "1 with no extension")
    refused(fill(tmp_path / "mixed", "a.jpg", "d/b.tar"), "1 images", "1 tars (d/b.tar)")
    refused(fill(tmp_path / "mixed2", "a.parquet", "b.tar"), "Parquet files", "tars")
    refused(tmp_path / "mixed2/*", "name one kind")
    refused(tmp_path / "text/a.txt", "unknown type", "a.txt")
    refused(tmp_path / "mixed/a.jpg", "a single image", f"give its folder, {tmp_path}/mixed")
    refused(tmp_path / "mixed/*.jpg", "a single image")
    refused("nosuch://x/y", "nosuch")
    refused("", "IMAGES is empty")
    refused("simplecache::memory://x", "chained")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/x.tar").symlink_to("gone.tar")
    refused(tmp_path / "links", "broken link")


# ---- remote


def test_remote_folder(memory: str) -> None:
    put(memory, aDOTjpg=b"1", d__bDOTpng=b"22", DOThiddenDOTjpg=b"", DOTd__xDOTjpg=b"", nDOTtxt=b"")
    for images in (memory, memory + "/"):
        (shard,) = scan(images).shards
        assert (shard.name, shard.url, shard.bytes) == (".", memory, 3)
        assert [(f.key, f.bytes) for f in shard.files or ()] == [("a.jpg", 1), ("d/b.png", 2)]
        assert all(f.version.isdigit() for f in shard.files or ())
    items = list(read_items("folder", shard.url, keys=["d/b.png", "gone.jpg"]))
    assert items == [
        Item("d/b.png", b"22", None),
        Item("gone.jpg", None, "the file cannot be read: No such file or directory"),
    ]
    before = scan(memory)
    assert scan(memory) == before
    put(memory, aDOTjpg=b"3")
    assert scan(memory) != before


def test_remote_tars(memory: str) -> None:
    put(memory, **{"x-0DOTtar": b"", "x-1DOTtar": b"", "y-0DOTtar": b""})
    assert names(memory) == ["x-0.tar", "x-1.tar", "y-0.tar"]
    assert names(f"{memory}/x-0.tar") == ["x-0.tar"]
    assert names(f"{memory}/x-{{0..1}}.tar") == names(f"{memory}/x-*.tar") == ["x-0.tar", "x-1.tar"]
    for shard in scan(f"{memory}/x-{{0..1}}.tar").shards:
        assert [i.key for i in read_items("tar", shard.url)] == ["@byte=0"]
    refused(f"{memory}/x-{{0..2}}.tar", "x-2.tar")
    refused(f"{memory}/gone.tar", "no such file")
    refused(f"{memory}/gone/*.tar", "nothing matches")


def test_etag_and_root_of_a_bucket() -> None:
    from maskmill.storage.listing import _remote_stat
    from maskmill.storage.patterns import fixed_folder

    assert _remote_stat("k", {"size": 1, "ETag": '"abc-2"', "LastModified": 5}).version == "abc-2"
    assert _remote_stat("k", {"size": None}).version == ""
    assert fixed_folder("memory://x-{0..1}.tar") == "memory://"
    assert fixed_folder("s3://bucket/*.tar") == "s3://bucket"
    assert fixed_folder("/*.tar") == "/"


# ---- Parquet


def write(path: Path, columns: dict[str, pa.Array], rows: int = 4) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return str(path)


def read(url: str) -> list[Item]:
    """The items, checked: counting agrees, and any cut into ranges gives the same items."""
    items = list(read_items("parquet", url))
    assert count_items("parquet", url) == len(items)
    for step in (1, 3, 4, 5):
        assert [i for s in range(0, len(items) + 1, step) for i in read_items("parquet", url, s, step)] == items
    return items


def images(n: int) -> list[bytes]:
    return [b"image %d" % i for i in range(n)]


@pytest.mark.parametrize("name", ["image", "jpg", "anything"])
@pytest.mark.parametrize("type", [pa.binary(), pa.large_binary()])
def test_parquet_binary_column(tmp_path: Path, name: str, type: pa.DataType) -> None:
    url = write(tmp_path / "x.parquet", {"label": pa.array(range(10)), name: pa.array(images(10), type)})
    assert read(url) == [Item(f"row={i}", data, None) for i, data in enumerate(images(10))]


def test_parquet_key_columns(tmp_path: Path) -> None:
    data = pa.array(images(3))
    cases: list[tuple[dict[str, pa.Array], list[str]]] = [
        ({"id": pa.array([7, None, 5])}, ["7", "row=1", "5"]),
        ({"name": pa.array(["x", "", "z"]), "__key__": pa.array(["a", "b", "c"])}, ["a", "b", "c"]),
        ({"path": pa.array(["p", "q", "r"]).dictionary_encode()}, ["p", "q", "r"]),
        ({"key": pa.array([0.5, 1.5, 2.5]), "filename": pa.array(["a", "b", "c"])}, ["a", "b", "c"]),
    ]
    for columns, want in cases:
        url = write(tmp_path / "x.parquet", {**columns, "image": data})
        assert [i.key for i in read(url)] == want


def test_parquet_hugging_face(tmp_path: Path) -> None:
    rows = [
        {"bytes": b"1", "path": "a.jpg"},
        {"bytes": None, "path": "b.jpg"},
        None,
        {"bytes": b"4", "path": None},
        {"bytes": b"5", "path": "a.jpg"},
    ]
    column = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    items = read(write(tmp_path / "x.parquet", {"label": pa.array([0] * 5), "image": column}, rows=2))
    assert [i.key for i in items] == ["a.jpg", "b.jpg", "row=2", "row=3", "a.jpg#2"]
    assert [i.data for i in items] == [b"1", None, None, b"4", None]
    assert "null" in (items[1].error or "") and "null" in (items[2].error or "")
    assert "duplicate key 'a.jpg'" in (items[4].error or "")
    keyed = write(tmp_path / "y.parquet", {"image_id": pa.array(range(5)), "image": column}, rows=2)
    assert [i.key for i in read(keyed)] == ["0", "1", "2", "3", "4"]


def test_parquet_one_key_for_all_rows(tmp_path: Path) -> None:
    n = 20000
    url = write(tmp_path / "x.parquet", {"name": pa.array(["cat"] * n), "image": pa.array([b""] * n)}, rows=n)
    assert [i.key for i in read_items("parquet", url, n - 2)] == [f"cat#{n - 1}", f"cat#{n}"]


def test_parquet_views(tmp_path: Path) -> None:
    columns = {"key": pa.array(["a", "b"], pa.string_view()), "image": pa.array([b"1", b"2"], pa.binary_view())}
    assert read(write(tmp_path / "x.parquet", columns)) == [Item("a", b"1", None), Item("b", b"2", None)]


def test_parquet_without_a_clear_image_column(tmp_path: Path) -> None:
    struct = pa.array([{"bytes": b""}])
    for columns, words in [
        ({"text": pa.array(["a"])}, ["no image column", "text: string"]),
        ({"left": pa.array([b""]), "right": pa.array([b""])}, ["more than one", "left: binary"]),
        ({"left": struct, "right": struct}, ["more than one"]),
    ]:
        url = write(tmp_path / "x.parquet", columns)
        for call in (lambda u: count_items("parquet", u), lambda u: list(read_items("parquet", u))):
            with pytest.raises(UserError) as e:
                call(url)
            assert all(w in str(e.value) for w in words)
    assert len(read(write(tmp_path / "x.parquet", {"mask": struct, "image": struct}))) == 1


def test_parquet_broken_footer(tmp_path: Path) -> None:
    whole = Path(write(tmp_path / "x.parquet", {"image": pa.array(images(10))})).read_bytes()
    for data in (b"", b"junk", whole[:-20], whole[: len(whole) // 2], whole[:-30] + b"x" * 22 + whole[-8:]):
        (tmp_path / "x.parquet").write_bytes(data)
        (item,) = read(str(tmp_path / "x.parquet"))
        assert item.key == "@byte=0" and item.data is None and "Parquet" in (item.error or "")


def test_parquet_broken_pages_lose_nothing_else(tmp_path: Path) -> None:
    blobs = [random.Random(i).randbytes(2000) for i in range(30)]
    path = tmp_path / "x.parquet"
    table = pa.table({"key": [f"k{i}" for i in range(30)], "image": pa.array(blobs)})
    pq.write_table(
        table,
        path,
        row_group_size=10,
        use_dictionary=False,
        write_statistics=False,  # a minimum would be a second copy of the bytes
        write_page_checksum=True,
        compression="none",
    )
    data = bytearray(path.read_bytes())
    at = data.find(blobs[14][:50])
    data[at : at + 50] = b"\0" * 50
    path.write_bytes(data)
    items = read(str(path))
    assert [i.key for i in items] == [f"k{i}" for i in range(30)]
    bad = [n for n, i in enumerate(items) if i.error]
    assert data.count(blobs[14][50:100]) == 1 and 14 in bad and set(bad) <= set(range(10, 20))
    assert all("row group 1" in (items[n].error or "") for n in bad)
    assert all(items[n].data == blobs[n] for n in range(30) if n not in bad)


def test_parquet_remote(memory: str, tmp_path: Path) -> None:
    url = write(tmp_path / "x.parquet", {"image": pa.array(images(10))})
    put(memory, xDOTparquet=Path(url).read_bytes())
    (shard,) = scan(memory).shards
    assert count_items("parquet", shard.url) == 10
    assert list(read_items("parquet", shard.url, 3, 4)) == read(url)[3:7]


def test_a_missing_shard_is_an_oserror(tmp_path: Path) -> None:
    for kind in ("tar", "parquet"):
        with pytest.raises(FileNotFoundError):
            list(read_items(kind, str(tmp_path / f"gone.{kind}")))

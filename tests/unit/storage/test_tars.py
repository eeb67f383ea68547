import io
import tarfile
from pathlib import Path

import fsspec
import pytest

from maskmill.storage.sources import Item, count_items, read_items

Members = list[tuple[str, bytes]]


def tar_bytes(members: Members, format: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(path: Path, data: bytes, start: int = 0, count: int | None = None) -> list[Item]:
    """The items, checked: counting agrees, and any cut into ranges gives the same items."""
    path.write_bytes(data)
    items = list(read_items("tar", str(path)))
    assert count_items("tar", str(path)) == len(items)
    assert len({i.key for i in items}) == len(items)
    for step in (1, 2, 3):
        parts = [i for s in range(0, len(items) + 1, step) for i in read_items("tar", str(path), s, step)]
        assert parts == items
    return items[start:] if count is None else items[start : start + count]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tar"


def test_keys_and_what_is_an_item(path: Path) -> None:
    members = [
        ("./a/b.c.jpg", b"1"),
        ("a/b.json", b"{}"),
        ("./a.x/c.JPG", b"2"),
        ("notes.txt", b"n"),
        ("d/._hidden.png", b"h"),
        ("d/e.tar.png", b"3"),
        ("/root/f.bmp", b"4"),
        ("g.png.txt", b"t"),
        ("noext", b""),
    ]
    items = read(path, tar_bytes(members))
    assert items == [
        Item("a/b", b"1", None),
        Item("a.x/c", b"2", None),
        Item("d/e", b"3", None),
        Item("root/f", b"4", None),
    ]


def test_links_and_folders_are_no_items(path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind in [("d.jpg", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("f.jpg", tarfile.FIFOTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("empty.jpg"))
    assert read(path, out.getvalue()) == [Item("empty", b"", None)]


def test_second_image_and_duplicates(path: Path) -> None:
    members = [
        ("a.jpg", b"1"),
        ("a.json", b"{}"),
        ("a.seg.png", b"2"),  # the same sample
        ("b.jpg", b"3"),
        ("a.jpg", b"4"),  # a later sample of the same name
        ("a.png", b"5"),  # and its second image
        ("b#2.jpg", b"6"),  # takes a number before it is needed
        ("b.jpg", b"7"),
    ]
    items = read(path, tar_bytes(members))
    assert [i.key for i in items] == ["a", "a#2", "b", "a#3", "a#4", "b#2", "b#3"]
    assert [i.data for i in items] == [b"1", None, b"3", None, None, b"6", None]
    errors = [i.error or "" for i in items]
    assert "a second image in sample 'a'" in errors[1] and "'a.jpg'" in errors[1]
    assert "duplicate key 'a'" in errors[3]
    assert "a second image" in errors[4]
    assert "duplicate key 'b'" in errors[6]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_odd_names(path: Path, format: int) -> None:
    long = "d/" * 80 + "n" * 120
    items = read(path, tar_bytes([(f"{long}.jpg", b"1"), ("größe.jpg", b"2"), ("z.jpg", b"3")], format))
    assert items == [Item(long, b"1", None), Item("größe", b"2", None), Item("z", b"3", None)]


def test_a_name_that_is_not_utf8_has_a_valid_key(path: Path) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    (item,) = read(path, tar_bytes([(name, b"1")]))
    assert item == Item("caf\\xe9", b"1", None)
    item.key.encode()


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_cut_at_every_place(path: Path, format: int) -> None:
    """Whole members before the cut are delivered, then one row says where."""
    members = [("a.jpg", b"a" * 700), ("n" * 130 + ".jpg", b"b" * 512), ("c.txt", b"c" * 600), ("d.jpg", b"d" * 10)]
    whole = tar_bytes(members, format)
    path.write_bytes(whole)
    with tarfile.open(path) as tar:
        places = [(m.offset, m.offset_data + m.size, m.name) for m in tar.getmembers()]
    assert [i.error for i in read(path, whole)] == [None] * 3
    for cut in sorted({0, 1, 511, 512, 513, *range(100, places[-1][1] + 700, 97), *(p[1] for p in places)}):
        items = read(path, whole[:cut])
        if cut > places[-1][1] + 502 + 511:
            assert items[-1].error is None  # one block of zeros is enough
            continue
        kept = [n for _, end, n in places if end <= cut]
        assert [i.key for i in items[:-1]] == [n[:-4] for n in kept if n.endswith(".jpg")]
        assert all(i.error is None for i in items[:-1])
        assert items[-1].data is None and items[-1].error
        at = next((start for start, end, _ in places if end > cut), None)
        if at is None or at >= cut:  # between two members
            at = min(cut, places[-1][1] + 502)
        assert items[-1].key == f"@byte={at}", cut


def test_empty_and_foreign_files(path: Path) -> None:
    assert [i.key for i in read(path, b"")] == ["@byte=0"]
    for data in (b"hello", b"x" * 5000, b"\x1f\x8b" + b"\0\1" * 600):
        (item,) = read(path, data)
        assert item.key == "@byte=0" and "not a tar" in (item.error or "")
    assert read(path, tar_bytes([])) == []


def test_garbage_in_the_middle(path: Path) -> None:
    one = tar_bytes([("a.jpg", b"1")])[:1024]
    items = read(path, one + b"garbage!" * 128 + tar_bytes([("b.jpg", b"2")]))
    assert [i.key for i in items] == ["a", "@byte=1024"]
    assert "broken" in (items[1].error or "")


def test_data_after_the_end_is_not_lost_without_a_word(path: Path) -> None:
    one = tar_bytes([("a.jpg", b"1")])
    items = read(path, one + tar_bytes([("b.jpg", b"2")]))
    assert [i.key for i in items] == ["a", "@byte=1024"]
    assert "after the end" in (items[1].error or "")


def test_a_key_like_the_broken_row(path: Path) -> None:
    data = tar_bytes([("@byte=1024.jpg", b"1")])[:1024]
    assert [i.key for i in read(path, data)] == ["@byte=1024", "@byte=1024#2"]


def test_remote_tars_are_streamed(path: Path) -> None:
    data = tar_bytes([("a.jpg", b"a" * 3000), ("a.json", b"{}"), ("b.jpg", b"b")])
    url = "memory://test_tars/x.tar"
    fsspec.filesystem("memory").pipe("/test_tars/x.tar", data)
    assert count_items("tar", url) is None
    assert list(read_items("tar", url)) == read(path, data)
    assert [i.key for i in read_items("tar", url, 1, 1)] == ["b"]
    fsspec.filesystem("memory").pipe("/test_tars/x.tar", data[:4000])
    assert [i.key for i in read_items("tar", url)] == ["a", "@byte=3584"]


def test_skipped_payloads_are_not_read(path: Path) -> None:
    path.write_bytes(tar_bytes([(f"{i}.jpg", b"x" * (1 << 20)) for i in range(8)]))
    read_bytes = 0

    class Counting(io.FileIO):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            nonlocal read_bytes
            n = super().readinto(buffer) or 0
            read_bytes += n
            return n

    from maskmill.storage.tars import count_tar

    assert count_tar(io.BufferedReader(Counting(str(path)))) == 8
    assert read_bytes < 1 << 18

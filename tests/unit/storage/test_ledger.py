"""One manifest for each unit: the first commit counts, the newest redo is read."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from maskmill.errors import UserError
from maskmill.storage.files import temporary, to_json
from maskmill.storage.ledger import DataFile, Ledger, Manifest, hash_keys

MANIFEST = Manifest(
    unit="000000",
    attempt="a1",
    files={"images": DataFile("images/000000-a1.parquet", 3, 100, "00")},
    images=3,
    empty=1,
    quarantined=0,
    candidates=9,
    masks=5,
    key_hash=hash_keys(["a", "b", "c"]),
    seconds=1.5,
    host="here",
    finished="2026-01-01T00:00:00+00:00",
)


def put(build: Path, name: str, manifest: Manifest = MANIFEST) -> Path:
    path = build / "ledger" / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_json(asdict(manifest)))
    return path


def newest(build: Path) -> dict[str, str]:
    return {unit: path.name for unit, path in Ledger(build).newest().items()}


def test_second_commit_loses(tmp_path: Path) -> None:
    """Promise 2: whoever is later is told so, and changes nothing."""
    ledger = Ledger(tmp_path)
    assert not ledger.is_committed("000000")
    assert ledger.commit(MANIFEST) and ledger.is_committed("000000")
    assert not ledger.commit(replace(MANIFEST, attempt="b2"))
    assert ledger.manifests() == [MANIFEST]


def test_manifest_round_trip(tmp_path: Path) -> None:
    Ledger(tmp_path).commit(MANIFEST)
    assert Manifest.read(tmp_path / "ledger" / "images" / "000000.json") == MANIFEST


def test_highest_redo_wins_by_number(tmp_path: Path) -> None:
    """@10 comes after @9; other units are not touched."""
    for name in ("000000.json", "000000@2.json", "000000@10.json", "000000@9.json", "000001.json"):
        put(tmp_path, name)
    assert newest(tmp_path) == {"000000": "000000@10.json", "000001": "000001.json"}


def test_redo_alone(tmp_path: Path) -> None:
    put(tmp_path, "000003@2.json")
    assert newest(tmp_path) == {"000003": "000003@2.json"}


def test_torn_and_foreign_files_are_not_seen(tmp_path: Path) -> None:
    """A temporary file of a killed writer, a hidden file, notes."""
    put(tmp_path, "000000.json")
    folder = tmp_path / "ledger" / "images"
    temporary(folder / "000001.json").write_bytes(b'{"unit": "0000')
    (folder / ".000002.json").write_bytes(b"{")
    (folder / "notes.txt").write_text("hello")
    assert newest(tmp_path) == {"000000": "000000.json"}
    assert Ledger(tmp_path).manifests() == [MANIFEST]


def test_no_ledger_yet(tmp_path: Path) -> None:
    assert Ledger(tmp_path).newest() == {} and Ledger(tmp_path).manifests() == []


def test_ledgers_of_filters_are_apart(tmp_path: Path) -> None:
    Ledger(tmp_path, "masks.strict").commit(MANIFEST)
    assert (tmp_path / "ledger" / "masks.strict" / "000000.json").is_file()
    assert Ledger(tmp_path).newest() == {}


def test_hash_keys_tells_order_and_boundaries() -> None:
    assert hash_keys(["a", "b"]) == hashlib.sha256(b"a\nb\n").hexdigest()
    assert len({hash_keys(k) for k in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], [])}) == 5


def test_data_file_is_measured(tmp_path: Path) -> None:
    got = DataFile.write(tmp_path, "images/x", 4, b"abc")
    assert got == DataFile("images/x", 4, 3, hashlib.sha256(b"abc").hexdigest())
    assert (tmp_path / "images" / "x").read_bytes() == b"abc"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"files": []}', b'{"files": {"images": 3}}', b"\xff"])
def test_what_is_no_manifest_is_named(data: bytes, tmp_path: Path) -> None:
    path = put(tmp_path, "000000.json")
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"images/000000\.json' is damaged \(.+\): restore it from a copy, or remove it"
    ):
        Ledger(tmp_path).manifests()

"""Builds on S3: input, output, continuing, retry, gc, errors; against a real server process."""

import json
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from maskmill.errors import UserError
from maskmill.pipeline import drive
from maskmill.pipeline.attempts import stop_file
from maskmill.pipeline.cli import main
from maskmill.pipeline.engines.local import LocalEngine
from maskmill.pipeline.generate import new_job, orphans
from maskmill.pipeline.summary import summary
from maskmill.pipeline.unit import Job
from maskmill.pipeline.verify import verify
from maskmill.storage import listing, remote
from maskmill.storage.build import Build
from maskmill.storage.files import at, create_if_absent, files_in, remove, write_bytes
from maskmill.storage.ledger import Ledger
from maskmill.storage.sources import read_items, scan
from tests.chaos.builds import assert_same, images, recipe, run_local, tables
from tests.chaos.fake import SEGFAULT_ONCE, SEGMENTER
from tests.chaos.s3 import RESET_AFTER, Plan, Proxy, make_bucket, moto, proxy, put, upload, use
from tests.pipeline.conftest import make_tar

ODD = ("a b.png", "c#d.png", "e?f.png", "g%41h.png", "é-日.png", "p+q&r=s.png", "[z].png", "sub dir/x,y.png")
PAGE = 3  # keys in one answer of the server: every listing here has pages


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto(tmp_path_factory.mktemp("moto") / "log", page=PAGE) as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket; this process and its children talk to the server."""
    use(monkeypatch, server)
    return make_bucket(f"b-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def between(bucket: str, server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Everything goes through a proxy; two tries for each request, to be quick."""
    with proxy(server) as p:
        use(monkeypatch, p.url, retries={"mode": "standard", "max_attempts": 1})
        yield p


def tars(folder: Path, count: int = 3) -> Path:
    for s in range(count):
        made = images(folder / f"made{s}", 4)
        members = {f"{s}{p.name}": p.read_bytes() for p in sorted(made.iterdir())}
        make_tar(folder / "tars" / ("sub" if s else ".") / f"{s:04d}.tar", members)
    return folder / "tars"


def test_a_folder_of_images(tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = images(tmp_path / "in", 7), f"{bucket}/out"
    run_local(photos, tmp_path / "local", inside=True)
    want = tables(tmp_path / "local")
    upload(photos, f"{bucket}/in")
    put(f"{bucket}/in2/other.png", b"a neighbour whose name begins alike")
    run_local(f"{bucket}/in", out, inside=True)
    assert_same(out, want)
    lines = "\n".join(summary(out))
    assert f"{out} (finished)" in lines and "7 of 7: 7 ok" in lines
    assert Build(out + "/").masks().num_rows == want["masks"].num_rows
    made = recipe(f"{bucket}/in")
    capsys.readouterr()
    assert drive.generate(made, out, LocalEngine(True), None, append=False, quiet=False) == drive.DONE
    assert capsys.readouterr().out == f"{out} is finished: 3 units; nothing to do\n"
    assert CliRunner().invoke(main, ["verify", out]).output == f"{out}: every promise holds\n"
    put(f"{bucket}/in/new.png", (photos / "0000.png").read_bytes())
    with pytest.raises(UserError, match=r"have grown by 1 \(first: new\.png\): add --append"):
        drive.generate(made, out, LocalEngine(True), None, append=False, quiet=False)
    put(f"{bucket}/in/0000.png", b"another")
    with pytest.raises(UserError, match="no longer as planned: 1 changed"):
        drive.generate(made, out, LocalEngine(True), None, append=True, quiet=False)


def test_tars(tmp_path: Path, bucket: str) -> None:
    source = tars(tmp_path)
    run_local(source, tmp_path / "local", inside=True)
    want = tables(tmp_path / "local")
    upload(source, f"{bucket}/in")
    run_local(f"{bucket}/in", f"{bucket}/out", inside=True)
    assert_same(f"{bucket}/out", want)
    run_local(f"{bucket}/in", tmp_path / "mixed", inside=True)  # from S3 to a local folder
    assert_same(tmp_path / "mixed", want)
    whole = make_bucket(f"{bucket.removeprefix('s3://')}-whole")
    run_local(source, whole, inside=True)
    assert_same(whole, want)
    assert scan(f"{bucket}/in/sub/{{0001..0002}}.tar").shards[1].name == "0002.tar"


def test_odd_names(tmp_path: Path, bucket: str) -> None:
    plain = images(tmp_path / "plain", len(ODD))
    for name, path in zip(ODD, sorted(plain.iterdir()), strict=True):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "in" / name)
    run_local(tmp_path / "in", tmp_path / "local", inside=True)
    upload(tmp_path / "in", f"{bucket}/in #1?")
    out = f"{bucket}/my out#1?é%41"
    run_local(f"{bucket}/in #1?", out, inside=True)
    assert sorted(Build(out).images()["key"].to_pylist()) == sorted(ODD)
    assert_same(out, tables(tmp_path / "local"))


def test_pages_and_neighbours(bucket: str) -> None:
    names = [f"{i:04d}.json" for i in range(3 * PAGE + 1)]
    for name in names:
        put(f"{bucket}/many/{name}", b"{}")
    put(f"{bucket}/many2/x.json", b"a neighbour whose name begins alike")
    assert [p.name for p in files_in(at(f"{bucket}/many"))] == names
    for depth in (None, 1):
        assert [f.key for f in listing.list_folder(f"{bucket}/many", depth)] == names


def test_the_consoles_empty_folders(tmp_path: Path, bucket: str) -> None:
    """ "Create folder" makes an empty object whose name ends with a slash."""
    upload(images(tmp_path / "in", 3), f"{bucket}/in")
    for name in ("in/", "in/empty.png/", "out/"):
        fs, path = remote.filesystem(bucket)
        fs.call_s3("put_object", Bucket=path, Key=name, Body=b"")
    assert files_in(at(f"{bucket}/out")) == []
    run_local(f"{bucket}/in", f"{bucket}/out", inside=True)
    assert Build(f"{bucket}/out").images().num_rows == 3


def test_fresh_listings(bucket: str) -> None:
    """Another process writes too."""
    old, new = (at(f"{bucket}/out") / "ledger" / "images" / name for name in ("0.json", "1.json"))
    write_bytes(old, b"1")
    assert files_in(old.parent) == [old] and old.exists() and not new.exists()
    code = "import sys; from maskmill.storage.files import at, remove, write_bytes; "
    code += "remove(at(sys.argv[1])); write_bytes(at(sys.argv[2]), b'1')"
    subprocess.run([sys.executable, "-c", code, str(old), str(new)], check=True)
    assert files_in(old.parent) == [new] and not old.exists() and new.exists()
    remove(old)  # gone already


def test_create_if_absent(bucket: str, between: Proxy) -> None:
    path = at(f"{bucket}/x.json")
    between.plan = Plan(script=[RESET_AFTER], only="PUT")
    assert create_if_absent(path, b"mine"), "a lost answer is still a win"
    assert not create_if_absent(path, b"other") and create_if_absent(path, b"mine")
    for code in ("412 PreconditionFailed", "409 ConditionalRequestConflict"):  # MinIO's 412 names no condition
        between.plan = Plan(script=[code], only="PUT")
        assert not create_if_absent(path, b"other") and path.read_bytes() == b"mine"
        assert between.plan.injected == {code: 1}
    between.plan = Plan(script=["409 ConditionalRequestConflict"] * 2, only="PUT")
    assert create_if_absent(at(f"{bucket}/y.json"), b"mine")
    between.plan = Plan(script=["403 AccessDenied"], only="PUT")
    with pytest.raises(PermissionError, match=f"{bucket}/z.json"):
        create_if_absent(at(f"{bucket}/z.json"), b"mine")


def test_an_error_is_not_an_absence(bucket: str, between: Proxy) -> None:
    """A ledger that cannot be read must not look empty."""
    ledger = Ledger(at(f"{bucket}/out"))
    stop = stop_file(at(f"{bucket}/out"), "abc")
    assert not ledger.is_committed("000000")
    with pytest.raises(FileNotFoundError):
        stop.read_text()
    for code in ("500 InternalError", "403 AccessDenied", "400 ExpiredToken"):
        for look in (lambda: ledger.is_committed("000000"), ledger.redos, stop.read_text):
            between.plan = Plan(rates={code: 1.0})
            with pytest.raises(OSError) as caught:
                look()
            assert not isinstance(caught.value, FileNotFoundError), (code, look)


def test_what_is_no_fault_of_the_image(tmp_path: Path, bucket: str, between: Proxy) -> None:
    url = upload(images(tmp_path / "in", 2), f"{bucket}/in")
    between.plan = plan = Plan(script=["403 AccessDenied"])
    first, second = read_items("folder", url, keys=["0000.png", "0001.png"])
    assert first.error == "the file cannot be read: Permission denied" and second.error is None
    assert plan.requests == 2, "one request for each image"
    for code in ("400 ExpiredToken", "403 InvalidAccessKeyId", "404 NoSuchBucket"):
        between.plan = Plan(script=[code])
        with pytest.raises(OSError):
            list(read_items("folder", url, keys=["0000.png"]))
    [gone] = read_items("folder", url, keys=["gone.png"])
    assert gone.error == "the file cannot be read: No such file or directory"


def test_gc(tmp_path: Path, bucket: str) -> None:
    out = at(upload(images(tmp_path / "in", 4), f"{bucket}/in")).parent / "out"
    run_local(f"{bucket}/in", out, inside=True)
    left = ["candidates/000001-dead.parquet", "images/000000-dead.parquet", "masks/default/000000-dead.parquet"]
    for name in [*left, "images/000007-at-work.parquet"]:
        write_bytes(out / name, b"half")
    assert {str(p) for p in orphans(out)} == {f"{out}/{name}" for name in left}
    assert sum("no manifest names it" in line for line in verify(out, quick=True)) == 3
    assert drive.gc(out, dry_run=True) == drive.gc(out, dry_run=False)
    assert orphans(out) == [] and (out / "images/000007-at-work.parquet").exists()
    assert list(verify(out, quick=False)) == []


def test_retry(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKMILL_FAKE_MEMORY", str(tmp_path))
    photos, out = images(tmp_path / "in", 4, {1: SEGFAULT_ONCE}), f"{bucket}/out"
    upload(photos, f"{bucket}/in")
    run_local(f"{bucket}/in", out, "run.max_retries=0")
    assert Build(out).images()["status"].to_pylist().count("quarantined") == 1
    monkeypatch.setattr(drive, "new_job", fake_job)
    made = recipe(f"{bucket}/in")
    assert drive.retry(made, at(out), LocalEngine(inside=True), "cpu", quiet=True) == drive.DONE
    run_local(photos, tmp_path / "local", inside=True)
    assert_same(out, tables(tmp_path / "local"))
    assert (at(out) / "_SUCCESS").exists() and (at(out) / "ledger/images/000000@2.json").exists()


def fake_job(*args: object) -> Job:
    return replace(new_job(*args), segmenter=SEGMENTER)  # type: ignore[arg-type]


def test_words_for_what_is_missing(tmp_path: Path, bucket: str) -> None:
    photos = str(images(tmp_path / "in", 1))
    for source, out, words in (
        ("s3://no-such-bucket/in", str(tmp_path / "o"), "s3://no-such-bucket/in: no such file or folder"),
        (f"{bucket}/typo", str(tmp_path / "o"), f"{bucket}/typo: no such file or folder"),
        (photos, "s3://no-such-bucket/out", "cannot write to --out 's3://no-such-bucket/out': The specified bucket"),
        (photos, "s3:///out", "s3:///out: no bucket is named: give s3://bucket/folder"),
        (photos, "foo://bucket/out", "foo://bucket/out: foo:// is not known"),
        (photos, "memory://out", "a build needs storage that can create a file only if it is absent"),
    ):
        refused(words, ["generate", source, "--out", out])
    for command in ("status", "verify", "retry", "gc"):
        refused(f"'{bucket}/typo' is not a build", [command, f"{bucket}/typo"])


def test_words_for_wrong_credentials(tmp_path: Path, bucket: str, server: str) -> None:
    photos = str(images(tmp_path / "in", 1))
    demand_keys(server, True)
    try:
        refused(f"{bucket}/in: cannot be listed (", ["generate", f"{bucket}/in", "--out", f"{bucket}/out"])
        refused(f"cannot write to --out '{bucket}/out': ", ["generate", photos, "--out", f"{bucket}/out"])
    finally:
        demand_keys(server, False)


def demand_keys(server: str, on: bool) -> None:
    """Whether moto checks who calls."""
    data, plain = b"0" if on else b"inf", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset-auth", data, plain, method="POST")).read()


WITHOUT = """
import json, sys
sys.modules["s3fs"] = None
from tests.pipeline.test_s3 import refused
for command in json.loads(sys.argv[1]):
    refused("pip install 'maskmill[s3]'", command)
"""


def test_words_without_s3fs(tmp_path: Path, bucket: str) -> None:
    photos = str(images(tmp_path / "in", 1))
    commands = [
        ["generate", f"{bucket}/in", "--out", str(tmp_path / "o")],
        ["generate", photos, "--out", f"{bucket}/out"],
        ["status", f"{bucket}/out"],
    ]
    subprocess.run([sys.executable, "-c", WITHOUT, json.dumps(commands)], check=True)


def refused(words: str, command: list[str]) -> None:
    """One line, exit code 2."""
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2 and words in done.output, done.output
    assert len(done.output.splitlines()) == 1

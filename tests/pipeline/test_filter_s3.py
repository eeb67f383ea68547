"""A filter of a build on S3, against a real server process: the same masks, continued, verified, collected."""

from pathlib import Path

from maskmill.pipeline import drive
from maskmill.pipeline.generate import orphans
from maskmill.pipeline.status import read_status
from maskmill.pipeline.verify import verify
from maskmill.storage.build import Build
from maskmill.storage.files import at, remove, write_bytes
from maskmill.storage.ledger import Ledger
from tests.chaos.builds import images
from tests.pipeline.filter_builds import STRICT, blob_build, hashes, refilter
from tests.pipeline.test_cli import run
from tests.pipeline.test_s3 import bucket, server  # noqa: F401  # fixtures


def test_a_filter_on_s3(tmp_path: Path, bucket: str) -> None:  # noqa: F811
    source, out = images(tmp_path / "in", 8), at(f"{bucket}/out")
    local, remote = blob_build(source, tmp_path / "b"), blob_build(source, out)
    assert refilter(local, "strict", STRICT) == refilter(remote, "strict", STRICT) == drive.DONE
    assert hashes(remote, "strict") == hashes(local, "strict") and (out / "_SUCCESS").exists()
    assert remote.filters == ["default", "strict"] and remote.masks("strict").equals(local.masks("strict"))
    assert list(verify(out, quick=False)) == []

    remove(Ledger(out, "masks.strict").newest()["000001"])  # as if killed before this commit
    assert [f.outdated for f in read_status(out).filters] == [1]
    done = run("filter", f"{bucket}/out", "--name", "strict", "--engine", "local", "--quiet")
    assert done.exit_code == 0, done.output
    assert hashes(Build(out), "strict") == hashes(local, "strict")
    assert orphans(out) == [], "the file of the manifest that is gone went when the build was closed again"
    write_bytes(out / "masks/strict/000002-0badc0de.parquet", b"half")
    assert [p.name for p in orphans(out)] == ["000002-0badc0de.parquet"]
    assert len(drive.gc(out, dry_run=False)) == 1 and list(verify(out, quick=False)) == []

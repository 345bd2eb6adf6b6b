import hashlib
import subprocess
from pathlib import Path

import pytest

from livetalk_kernels.errors import UserError
from livetalk_model.weights.manifest import read_manifest, verify_manifest, write_manifest


def quiet(name: str, count: int) -> None:
    """No progress."""


@pytest.fixture
def roots(tmp_path) -> dict[str, Path]:
    for name, content in {
        "a/x.bin": b"one",
        "a/deep/y z.bin": b"two" * 3_000_000,
        "a/.cache/z": b"hidden",
        "a/half.part": b"unfinished",
        "b/x.bin": b"three",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return {"checkpoint": tmp_path / "a", "audio-encoder": tmp_path / "b"}


def test_manifest_is_written_and_verified(roots, tmp_path):
    path, seen = tmp_path / "MANIFEST", []
    assert write_manifest(path, roots, lambda name, count: seen.append((name, count))) == 3
    assert sum(count for _, count in seen) == 3 + 9_000_000 + 5
    assert read_manifest(path) == {
        "audio-encoder/x.bin": hashlib.sha256(b"three").hexdigest(),
        "checkpoint/deep/y z.bin": hashlib.sha256(b"two" * 3_000_000).hexdigest(),
        "checkpoint/x.bin": hashlib.sha256(b"one").hexdigest(),
    }
    assert set(verify_manifest(path, roots, quiet).values()) == {"ok"}
    assert not list(tmp_path.glob("*.part"))


def test_changed_and_missing_files_are_found(roots, tmp_path):
    path = tmp_path / "MANIFEST"
    write_manifest(path, roots, quiet)
    (roots["checkpoint"] / "x.bin").write_bytes(b"ONE")
    (roots["audio-encoder"] / "x.bin").unlink()
    (roots["checkpoint"] / "new.bin").write_bytes(b"not listed")
    assert verify_manifest(path, roots, quiet) == {
        "audio-encoder/x.bin": "missing",
        "checkpoint/deep/y z.bin": "ok",
        "checkpoint/x.bin": "changed",
    }


def test_a_manifest_inside_its_folder_does_not_list_itself(roots):
    path = roots["checkpoint"] / "MANIFEST"
    for _ in range(2):
        assert write_manifest(path, roots, quiet) == 3
    assert set(verify_manifest(path, roots, quiet).values()) == {"ok"}


def test_sha256sum_reads_it(roots, tmp_path):
    path = tmp_path / "MANIFEST"
    write_manifest(path, {"a": roots["checkpoint"]}, quiet)
    subprocess.run(["sha256sum", "-c", path], check=True, cwd=tmp_path, capture_output=True)


def test_folders_that_are_not_given(roots, tmp_path):
    path = tmp_path / "MANIFEST"
    write_manifest(path, roots, quiet)
    with pytest.raises(UserError, match="--audio-encoder DIR"):
        verify_manifest(path, {"checkpoint": roots["checkpoint"]}, quiet)


@pytest.mark.parametrize(
    "text", ["", "nonsense\n", f"{'0' * 64}  checkpoint/../../etc/passwd\n", f"{'0' * 64}  x\n"]
)
def test_damaged_manifest(roots, tmp_path, text):
    path = tmp_path / "MANIFEST"
    path.write_text(text)
    with pytest.raises(UserError, match="MANIFEST"):
        verify_manifest(path, roots, quiet)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="MANIFEST"):
        verify_manifest(path, roots, quiet)


def test_nothing_to_hash_and_nowhere_to_write(roots, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no files"):
        write_manifest(tmp_path / "MANIFEST", {"checkpoint": empty}, quiet)
    with pytest.raises(UserError, match="/proc/MANIFEST"):  # not even root may write there
        write_manifest(Path("/proc/MANIFEST"), roots, quiet)
    with pytest.raises(UserError, match="check the path"):
        read_manifest(tmp_path / "MANIFEST")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "empty"]


def test_folder_of_the_manifest_is_made(roots, tmp_path):
    path = tmp_path / "new" / "folder" / "MANIFEST"
    assert write_manifest(path, roots, quiet) == 3
    assert [file.name for file in path.parent.iterdir()] == ["MANIFEST"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("cannot be read")])
def test_what_is_interrupted_leaves_nothing_and_the_old_one(roots, tmp_path, error):
    def stops(name: str, count: int) -> None:
        raise error

    old = tmp_path / "MANIFEST"
    old.write_text("old")
    for path in (old, tmp_path / "new" / "folder" / "MANIFEST"):
        with pytest.raises(type(error)):
            write_manifest(path, roots, stops)
    assert old.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["MANIFEST", "a", "b"]


def test_an_unwritable_folder_is_found_before_the_work(roots):
    def works(name: str, count: int) -> None:
        pytest.fail("hashed before it was known where to write")

    with pytest.raises(UserError, match="use another output"):
        write_manifest(Path("/proc/MANIFEST"), roots, works)

"""Outputs: every writer has a file of its own, only regular files are replaced, links are kept."""

import errno
import os
import random
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from livetalk_kernels import outputs
from livetalk_kernels.errors import UserError
from livetalk_kernels.outputs import (
    PartFile,
    check_output,
    new_file,
    old_parts,
    part_pattern,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write(path: Path, content: bytes = b"new") -> None:
    with new_file(path) as stream:
        stream.write(content)


# Writers of one output ------------------------------------------------------------------


def test_two_writers_of_one_output_do_not_meet(tmp_path: Path):
    """The longer file is begun first and ends last, with the shorter one's writing in between."""
    path = tmp_path / "x.json"
    with new_file(path) as long:
        long.write(b"a" * 100_000)
        long.flush()
        write(path, b"b")
        assert path.read_bytes() == b"b"
        long.write(b"a")
    assert path.read_bytes() == b"a" * 100_001 and names(tmp_path) == ["x.json"]


def test_many_writers_at_random(tmp_path: Path):
    path, chance = tmp_path / "new" / "x.npy", random.Random(0)
    contents = [bytes([65 + i]) * chance.randrange(1, 300_000) for i in range(20)]
    errors: list[BaseException] = []

    def run(content: bytes, wait: float) -> None:
        try:
            time.sleep(wait)
            with new_file(path) as stream:
                for start in range(0, len(content), 10_000):
                    stream.write(content[start : start + 10_000])
                    time.sleep(wait / 10)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(content, chance.random() / 50)) for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and path.read_bytes() in contents and names(path.parent) == ["x.npy"]


def test_the_part_of_a_killed_run_is_never_written_again(tmp_path: Path):
    path = tmp_path / "x.mp4"
    left = PartFile(path)  # never ended: its process was killed
    left.part.write_bytes(b"rescued")
    write(path)
    assert left.part.read_bytes() == b"rescued"
    assert names(tmp_path) == ["x.mp4", left.part.name]
    assert left.part.match(part_pattern(path).name)


@pytest.mark.parametrize("random_part", ["taken", "a link"])
def test_a_name_that_is_taken_is_neither_followed_nor_truncated(
    random_part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tokens = iter(["00000000", "11111111"])
    monkeypatch.setattr(outputs.secrets, "token_hex", lambda size: next(tokens))
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    taken = tmp_path / "x.json.00000000.part"
    if random_part == "taken":
        os.link(victim, taken)
    else:
        taken.symlink_to(victim)
    write(tmp_path / "x.json")
    assert victim.read_bytes() == b"precious" and (tmp_path / "x.json").read_bytes() == b"new"
    assert names(tmp_path) == ["victim", "x.json", taken.name]


def test_a_fixed_part_name_is_left_alone(tmp_path: Path):
    """The name that all writers once shared."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "x.json.part").symlink_to(victim)
    write(tmp_path / "x.json")
    assert victim.read_bytes() == b"precious"


# What is there already ------------------------------------------------------------------


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 7))
    except PermissionError:  # not root: what stands behind a link counts
        path.symlink_to("/dev/full")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{folder}/{path.name}")  # the whole path may be too long
        os.close(folder)


IRREGULAR: dict[str, Callable[[Path], None]] = {
    "folder": Path.mkdir,
    "FIFO": os.mkfifo,
    "socket": make_socket,
    "device": make_device,
}


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_no_regular_file_is_refused_and_stays(kind: str, linked: bool, tmp_path: Path):
    folder = tmp_path / "out"
    folder.mkdir()
    there = path = folder / "x.json"
    if linked:
        there = tmp_path / "there"
        path.symlink_to(there)
    IRREGULAR[kind](there)
    before = os.lstat(there)
    for attempt in (lambda: check_output(path, (".json",)), lambda: PartFile(path)):
        with pytest.raises(UserError, match=f"x.json: is a {kind}.*(name|another output file)"):
            attempt()
    after = os.lstat(there)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert names(folder) == ["x.json"]


@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_has_come_meanwhile_is_not_replaced_either(kind: str, tmp_path: Path):
    """Nor is the finished file lost."""
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match=f"x.json: is a {kind}.*is left in .*part$"):  # noqa: SIM117
        with new_file(path) as stream:
            stream.write(b"finished")
            IRREGULAR[kind](path)
    kept = [entry for entry in tmp_path.iterdir() if entry.suffix == ".part"]
    assert [entry.read_bytes() for entry in kept] == [b"finished"]
    assert not stat.S_ISREG(os.stat(path).st_mode)


def test_dev_full_stays_a_device():
    with pytest.raises(UserError, match="is a device and no file"):
        PartFile(Path("/dev/full"))
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.parametrize("behind", ["file", "nothing", "nothing in no folder", "link to a file"])
def test_what_stands_behind_a_link_is_replaced(behind: str, tmp_path: Path):
    target = tmp_path / "there" / ("deep/t.dat" if behind == "nothing in no folder" else "t.dat")
    if behind != "nothing in no folder":
        target.parent.mkdir()
    if "file" in behind:
        target.write_bytes(b"old")
    link = tmp_path / "out" / "x.json"
    link.parent.mkdir()
    if behind == "link to a file":
        (tmp_path / "second").symlink_to(target)
        link.symlink_to(tmp_path / "second")
    else:
        link.symlink_to(Path("..", target.relative_to(tmp_path)))
    check_output(link, (".json",))
    file = PartFile(link)
    assert file.part.parent.resolve() == target.parent  # one file system, so that it can be renamed
    with file.open() as stream:
        stream.write(b"new")
    file.commit()
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert names(link.parent) == ["x.json"] and names(target.parent) == ["t.dat"]


def test_a_link_to_itself_is_refused(tmp_path: Path):
    path = tmp_path / "x.json"
    path.symlink_to(path)
    for attempt in (lambda: check_output(path, (".json",)), lambda: PartFile(path)):
        with pytest.raises(UserError, match="cannot be written"):
            attempt()
    assert names(tmp_path) == ["x.json"]


# Modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "umask", "expected"),
    [(None, 0o022, 0o644), (None, 0o077, 0o600), (0o600, 0o022, 0o600), (0o664, 0o077, 0o664),
     (0o444, 0o022, 0o444)],
)  # fmt: skip
def test_permissions(old: int | None, umask: int, expected: int, tmp_path: Path):
    """A new file has what the umask leaves, one that replaces another has the other's."""
    path = tmp_path / "x.json"
    if old is not None:
        path.write_bytes(b"old")
        path.chmod(old)
    before = os.umask(umask)
    try:
        file = PartFile(path)
        if old == 0o600:
            assert file.part.stat().st_mode & 0o077 == 0  # private from the start
        file.commit()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == expected


# Names and folders ----------------------------------------------------------------------


@pytest.mark.parametrize("stem", ["n" * 250, "ж" * 125, "n" * 255])
def test_long_names(stem: str, tmp_path: Path):
    path = tmp_path / f"{stem[: -5 if stem.isascii() else -3]}.json"
    check_output(path, (".json",))
    write_json(path, [1])
    assert names(tmp_path) == [path.name]


def test_a_name_that_is_too_long_is_refused(tmp_path: Path):
    path = tmp_path / f"{'n' * 255}.json"
    for attempt in (lambda: check_output(path, (".json",)), lambda: PartFile(path)):
        with pytest.raises(UserError, match=r"cannot be written \(File name too long"):
            attempt()
    assert not old_parts(path) and part_pattern(path).name.endswith(".*.part")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bad"), OSError(5, "I/O")])
def test_nothing_is_left_of_what_fails(error: BaseException, tmp_path: Path):
    old = tmp_path / "x.json"
    old.write_bytes(b"old")
    for path in (old, tmp_path / "new" / "folder" / "x.json"):
        expected = UserError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected), new_file(path) as stream:
            stream.write(b"half")
            raise error
    assert names(tmp_path) == ["x.json"] and old.read_bytes() == b"old"


def test_a_disk_that_is_full_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Some file systems notice it when the file is synchronised, and not before."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        write_text(tmp_path / "new" / "x.txt", "text")
    assert not names(tmp_path)


def test_discard_after_commit_removes_nothing(tmp_path: Path):
    file = PartFile(tmp_path / "new" / "x.json")
    file.commit()
    file.discard()
    assert names(tmp_path / "new") == ["x.json"]


# What killed runs have left -------------------------------------------------------------


def test_old_parts_are_found_and_stay(tmp_path: Path):
    path = tmp_path / "a.mp4"
    old, fresh = PartFile(path).part, PartFile(path).part
    others = [PartFile(tmp_path / name).part for name in ("b.mp4", "a.mp4.b.mp4")]
    (tmp_path / "a.mp4.mine.part").touch()
    yesterday = time.time() - outputs.LEFT_SECONDS - 60
    for part in (old, *others, tmp_path / "a.mp4.mine.part"):
        os.utime(part, (yesterday, yesterday))
    assert old_parts(path) == [old] and fresh.exists()
    (tmp_path / "link.mp4").symlink_to(path)
    assert old_parts(tmp_path / "link.mp4") == [old]
    assert not old_parts(tmp_path / "no" / "folder.mp4") and old.exists()

"""Every text input, and every kind of bad file: one line that names it, at once, in little memory.

Each reader is held to the same list, so that none can be forgotten: a new one is a line in JSON,
TEXT or FILES.
"""

import copy
import errno
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import pytest
import torch

from livetalk_kernels.config import find_tuning
from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import (
    LFS_HEAD,
    Range,
    build,
    check_folder,
    check_input,
    find,
    is_file,
    is_folder,
    read_bytes,
    read_json,
    read_text,
)
from livetalk_kernels.inspection import baseline
from livetalk_kernels.inspection.report import Kernel, Report, as_json
from livetalk_kernels.inspection.sass import Code
from livetalk_kernels.lines import one_line
from livetalk_kernels.tuning import Choice, MachineEntry, Tuning, TuningKey
from livetalk_model.avatar import Avatar, load_embedding
from livetalk_model.config import AudioEncoderConfig, DiTConfig
from livetalk_model.encoders.audio import AudioEncoder
from livetalk_model.encoders.text import load_tokenizer
from livetalk_model.media.audio import AudioReader
from livetalk_model.media.image import load_portrait
from livetalk_model.own import OwnModel
from livetalk_model.plan.recorded import read_recorded
from livetalk_model.profile.compare import read_report
from livetalk_model.train.data.clips import read_index
from livetalk_model.weights.checkpoint import CheckpointFolder
from livetalk_model.weights.manifest import read_manifest
from livetalk_model.weights.tensor_files import open_weights

CPU = torch.device("cpu")
KERNEL = Kernel(
    op="add_norm", backend="triton", name="kernel", cases=("14b",), stages=3, spills=(0, 0),
    constants={"B": 64}, dynamic_shared=1024, pointers=("bf16",), dots=("bf16",), warnings=("w",),
    seconds=1.5,
    code=Code(
        registers=72, stack=0, static_shared=0, threads=128, tensor_cores={"HGMMA": 2},
        tma={"UTMALDG": 1}, loads={"128": 2}, stores={"128": 1}, copies={"64": 1},
    ),
)  # fmt: skip
REPORT = Report(
    dtype="bfloat16", date="2026-11-20", commit="a", versions={"triton": "3.9.0"}, kernels=(KERNEL,)
)

# Of a file of any kind, and of text in JSON: name -> (name of the file, reader).
Reader = Callable[[Path], object]
JSON: dict[str, tuple[str, Reader]] = {
    "DiT": ("config.json", DiTConfig.from_json),
    "wav2vec2": ("config.json", AudioEncoderConfig.from_json),
    "own model": ("config.json", OwnModel.read),
    "index": ("x.safetensors.index.json", open_weights),
    "--config": ("t.json", Tuning.load),
    "LIVETALK_CONFIG": ("t.json", lambda path: find_tuning(None, {"LIVETALK_CONFIG": str(path)})),
    "clips": ("index.json", read_index),
    "inspect --compare": ("r.json", lambda path: baseline.load(path, REPORT)),
    "profile --compare": ("report.json", lambda path: read_report(path.parent)),
    "--fit": ("report.json", lambda path: read_recorded([path])),
}
TEXT = JSON | {"--verify-manifest": ("MANIFEST", read_manifest)}
FILES = TEXT | {
    "safetensors": ("x.safetensors", open_weights),
    "pth": ("x.pth", open_weights),
    "bin": ("x.bin", open_weights),
    "avatar": ("x.avatar", Avatar.load),
    "embedding": ("x.safetensors", lambda path: load_embedding(path, "context")),
    "--portrait": ("x.png", load_portrait),
    "--audio": ("x.wav", AudioReader),
    "tokenizer": ("tokenizer.json", lambda path: load_tokenizer(path.parent)),
}
FOLDERS: dict[str, Reader] = {
    "--checkpoint": CheckpointFolder,
    "weights": open_weights,
    "--audio-encoder": lambda path: AudioEncoder.from_folder(path, device="cpu"),
    "tokenizer": load_tokenizer,
}


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    """Nothing here may wait for anybody."""

    def late(number: int, frame: object) -> None:
        pytest.fail("waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(reader: Reader, path: Path) -> str:
    """The one line with which a reader refuses a path."""
    with pytest.raises(UserError) as error:
        reader(path)
    message = str(error.value)
    assert "\n" not in message and len(message) < 700, message
    assert one_line(path.name)[:80] in message
    return message


# Kinds of files ----------------------------------------------------------------------------------


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(path.name)
    finally:
        os.chdir(here)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "fifo": (make_fifo, "is a pipe; write it to a file first"),
    "link to a fifo": (lambda p: (os.mkfifo(f"{p}.f"), p.symlink_to(f"{p}.f"))[0], "is a pipe"),
    "socket": (make_socket, "is a socket"),
    "endless": (link_to("/dev/zero"), "is a device"),
    "terminal": (link_to("/dev/tty"), "is a device"),
    "dangling": (link_to("../../blobs/0abc"), r"is a link to ../../blobs/0abc, which is not there"),
    "loop": (lambda path: path.symlink_to(path.name), "leads back to itself"),
    "empty": (lambda path: path.write_bytes(b"") and None, "is empty"),
    "lfs": (lambda path: path.write_bytes(LFS_HEAD + b"v1\noid x\n") and None, "git lfs pull"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_regular_file_is_named(name, kind, tmp_path):
    file, reader = FILES[name]
    make, says = KINDS[kind]
    make(tmp_path / file)
    assert says in refused(reader, tmp_path / file)


@pytest.mark.parametrize("name", FILES)
def test_impossible_and_missing_names(name, tmp_path):
    file, reader = FILES[name]
    if name not in ("tokenizer", "profile --compare"):  # whose input is the folder
        for path in (tmp_path / ("x" * 300 + file), tmp_path / f"a\0{file}"):
            assert "check the path" in refused(reader, path)
        refused(reader, tmp_path / "none" / file)


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(name, tmp_path):
    reader = FOLDERS[name]
    for path in (tmp_path / ("x" * 300), tmp_path / "a\0b", tmp_path / "none"):
        assert refused(reader, path)
    fifo, dangling = tmp_path / "fifo", tmp_path / "dangling"
    os.mkfifo(fifo)
    assert "is a pipe" in refused(reader, fifo)
    dangling.symlink_to("gone")
    assert "is a link to gone" in refused(reader, dangling)


def cache(folder: Path, *hashes: str, main: str = "") -> Path:
    """The root of a download cache, as the hub's client makes it."""
    for name in hashes:
        (folder / "snapshots" / name).mkdir(parents=True)
    for name in ("refs", "blobs"):
        (folder / name).mkdir(parents=True)
    if main:
        (folder / "refs/main").write_text(main)
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_the_root_of_a_download_cache(name, tmp_path):
    """Its snapshot is named: the one of ``main``, else the newest."""
    root = cache(tmp_path / "models--org--name", "0a", "0b", main="0a")
    said = refused(FOLDERS[name], root)
    assert "is the root of a download cache" in said and f"{root}/snapshots/0a" in said
    (root / "refs/main").write_text("../../elsewhere")
    os.utime(root / "snapshots/0a", (1, 1))
    assert f"{root}/snapshots/0b" in refused(FOLDERS[name], root)
    empty = cache(tmp_path / "models--org--empty")
    (empty / "snapshots").mkdir()
    assert f"{empty}/snapshots/HASH" in refused(FOLDERS[name], empty)


def test_what_may_not_be_read(tmp_path):
    """As another user, where this one may read everything."""
    (tmp_path / "x").write_text("x")
    (tmp_path / "folder").mkdir()
    os.chmod(tmp_path / "x", 0)
    os.chmod(tmp_path / "folder", 0)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        said = []
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            for call, path in (
                (check_input, tmp_path / "x"),
                (check_input, tmp_path / "folder/y"),
                (check_folder, tmp_path / "folder"),
            ):
                try:
                    call(path, "what")
                except UserError as error:
                    said.append(str(error))
            said.append(f"{is_file(tmp_path / 'folder/y')} {is_folder(tmp_path / 'folder/y')}")
            os.write(writer, "\n".join(said).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answer:
        *lines, flags = answer.read().splitlines()
    assert len(lines) == 3 and flags == "False False"
    assert all("cannot be read; change its permissions" in line for line in lines)


def test_find_never_raises(tmp_path):
    (tmp_path / "file").write_text("four")
    assert (find(tmp_path / "file").kind, find(tmp_path / "file").bytes) == ("file", 4)
    assert is_file(str(tmp_path / "file")) and not is_file(tmp_path) and is_folder(tmp_path)
    for path, kind in (
        (tmp_path / "none", "missing"), (tmp_path / "file/none", "missing"),
        ("x" * 5000, "unusable"), ("\0", "unusable"), ("\ud800", "unusable"), ("", "missing"),
    ):  # fmt: skip
        found = find(path)
        assert found.kind == kind and found.problem
        assert not is_file(path) and not is_folder(path)


# What is in them ---------------------------------------------------------------------------------

DEEP = b'{"a": ' + b"[" * 200_000
CONTENTS: dict[str, tuple[bytes, str]] = {
    "deep list": (DEEP, "nested too deeply"),
    "twice": (b'{"a": {"b": 1, "b": 2}}', "'b' is there twice"),
    "nan": (b'{"a": [1, NaN]}', "a: NaN is no finite number"),
    "infinity": (b'{"a": {"b": {}, "c": -Infinity, "d": {}}}', "c: -Infinity is no finite number"),
    "large": (b'{"a": 1e999}', "a: 1e999 is no finite number"),
    "long": (b'{"a": ' + b"9" * 9999 + b"}", "a: 9999"),
    "list": (b"[1]", "holds a list, not a JSON object"),
    "text": (b'{\n "a" 3}', "line 2 column 6"),
    "blank": (b" \n", "is not valid JSON"),
}
ENCODINGS: dict[str, tuple[bytes, str]] = {
    "utf-16": ('{"a": 1}'.encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
    "utf-16 without a mark": ('{"a": 1}'.encode("utf-16-le"), "byte 1 is zero"),
    "utf-32": ('{"a": 1}'.encode("utf-32"), "is text in UTF-32; save it as UTF-8"),
    "latin-1": ('\n{"a": "é"}'.encode("latin-1"), "not UTF-8 text (line 2, byte 8)"),
    "random": (bytes(range(256)) * 4, "is not UTF-8 text"),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", JSON)
def test_json_that_is_none(name, content, tmp_path):
    file, reader = JSON[name]
    text, says = CONTENTS[content]
    (tmp_path / file).write_bytes(text)
    assert says in refused(reader, tmp_path / file)


@pytest.mark.parametrize("content", ENCODINGS)
@pytest.mark.parametrize("name", TEXT)
def test_text_that_is_none(name, content, tmp_path):
    file, reader = TEXT[name]
    text, says = ENCODINGS[content]
    (tmp_path / file).write_bytes(text)
    assert says in refused(reader, tmp_path / file)


@pytest.mark.parametrize("name", TEXT)
def test_text_without_end(name, tmp_path):
    """Sparse: nothing is on the disk, and of 4 TB no more is read than the reader's limit."""
    file, reader = TEXT[name]
    with (tmp_path / file).open("wb") as stream:
        stream.write(b'{"a": "')
        stream.truncate(1 << 42)
    assert "MiB, the most that is read here" in refused(reader, tmp_path / file)


def test_a_size_of_zero_defeats_no_limit():
    assert os.stat("/proc/cpuinfo").st_size == 0
    assert len(read_bytes("/proc/cpuinfo", "list")) > 10
    with pytest.raises(UserError, match="cpuinfo: is larger than 10 bytes"):
        read_bytes("/proc/cpuinfo", "list", limit=10)


@pytest.mark.parametrize("name", JSON)
def test_a_byte_order_mark_is_no_fault(name, tmp_path):
    """The same complaint as without it, which is about what is in the file."""
    file, reader = JSON[name]
    path, said = tmp_path / file, []
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + b'{"num_layers": 0, "hidden_size": 0, "livetalk": 0}')
        said.append(refused(reader, path))
    assert said[0] == said[1] and "JSON" not in said[0]


def test_bytes_are_read_by_the_same_rules():
    """What comes in a request has a name, and no path."""
    assert read_json(b'\xef\xbb\xbf{"a": "\xc3\xa9"}', "the request", cure="mend it") == {"a": "é"}
    assert read_text(b"", "the prompt") == ""
    for data, says in (
        (DEEP, "nested"),
        (b"[]", "a list"),
        (b"\xff", "UTF-8"),
        (b" " * 99, "64"),
    ):
        limit = 64 if says == "64" else 1 << 20
        with pytest.raises(UserError, match=r"^the request: ") as error:
            read_json(data, "the request", cure="mend it", limit=limit)
        assert says in str(error.value)


# Types and ranges --------------------------------------------------------------------------------


def tuning_text() -> dict[str, Any]:
    choice = Choice(
        op="add_norm", dtype="float32", dims={"B": 1, "L": 8}, backend="cpu", variant={"a": 1},
        p50={"cpu": 1e-3, "reference": 2e-3},
    )  # fmt: skip
    entry = MachineEntry(
        key=TuningKey.of(CPU), complete=True, date="2026", commit="a", choices=(choice, choice)
    )
    return Tuning(path="t.json", machines=(entry,)).as_json()


def use_tuning(path: Path) -> None:
    known = Tuning.load(path)
    for machine in known.machines:
        assert machine.key.difference(machine.key) is None
        for choice in machine.choices:
            assert choice.distance({"L": 4, "B": 1}) >= 0
    known.updated(known.machines[0]) if known.machines else None


def use_report(path: Path) -> None:
    before = baseline.load(path, REPORT)
    for kernel in before.kernels:
        assert kernel.warps is None or kernel.warps >= 0
    baseline.regressions(before, REPORT)
    baseline.regressions(REPORT, before)
    as_json(before)


def dit_text() -> dict[str, Any]:
    return {"dim": 256, "num_heads": 4, "num_layers": 2, "ffn_dim": 512, "eps": 1e-6,
            "patch_size": [1, 2, 2], "model_type": "i2v", "window_size": [-1, -1]}  # fmt: skip


def wav2vec2_text() -> dict[str, Any]:
    stages = {"conv_dim": [32] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2]}
    return {"hidden_size": 32, "num_attention_heads": 4, "conv_stride": [5, *[2] * 6]} | stages


MUTATED: MappingProxyType[str, tuple[Callable[[], dict[str, Any]], Reader]] = MappingProxyType(
    {
        "tuning": (tuning_text, use_tuning),
        "inspect": (lambda: json.loads(json.dumps(as_json(REPORT))), use_report),
        "DiT": (dit_text, DiTConfig.from_json),
        "wav2vec2": (wav2vec2_text, AudioEncoderConfig.from_json),
    }
)
WRONG = (None, True, "x", "", -1, 0, 10**18, 1.5, -1e300, [], [[]], [1], {}, {"x": []}, [-1, 2])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@pytest.mark.parametrize("name", MUTATED)
def test_any_value_of_any_type_at_any_place(name, tmp_path):
    """Either it is refused in one line, or all that is done with it works."""
    make, use = MUTATED[name]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(make()))
    use(path)
    kept = 0
    for place in list(places(make()))[1:]:
        for wrong in (*WRONG, "gone"):
            value = copy.deepcopy(make())
            inner = value
            for key in place[:-1]:
                inner = inner[key]
            if wrong == "gone":
                del inner[place[-1]]
            else:
                inner[place[-1]] = wrong
            path.write_text(json.dumps(value))
            try:
                use(path)
                kept += 1
            except UserError as error:
                assert "\n" not in str(error) and str(path) in str(error)
    assert kept


@dataclass(frozen=True, kw_only=True)
class Inner:
    """For the test."""

    size: Annotated[int, Range(1, 9)]


@dataclass(frozen=True, kw_only=True)
class Outer:
    """For the test."""

    inner: Inner
    many: tuple[Inner, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    table: dict[str, float] = field(default_factory=dict)
    kind: Literal["a", "b"] = "a"
    note: str | None = None
    on: bool = False


def test_build():
    value = {"inner": {"size": 3}, "many": [{"size": 1}], "pair": [2, 3], "table": {"x": 1},
             "kind": "b", "note": None, "on": True, "unknown": 1}  # fmt: skip
    built = build(Outer, value)
    assert built == Outer(inner=Inner(size=3), many=(Inner(size=1),), pair=(2, 3.0),
                          table={"x": 1.0}, kind="b", on=True)  # fmt: skip
    assert type(built.pair[1]) is float
    assert build(Outer, {"inner": {"size": 9}}) == Outer(inner=Inner(size=9))
    for change, says in (
        ({"inner": {"size": 10}}, "inner.size is 10, not from 1 to 9"),
        ({"inner": {}}, "inner.size is missing"),
        ({"inner": [1]}, "inner is a list, not an object"),
        ({"many": [{"size": 1}, {"size": "1"}]}, "many[1].size is '1', not a whole number"),
        ({"many": {}}, "many is an object, not a list"),
        ({"pair": [1]}, "pair has 1 entries, not 2"),
        ({"pair": [1.5, 2]}, "pair[0] is 1.5, not a whole number"),
        ({"table": {"x": None}}, "table.x is null, not a number"),
        ({"table": []}, "table is a list, not an object"),
        ({"kind": "c"}, "kind is 'c', not one of a, b"),
        ({"note": 3}, "note is 3, not text"),
        ({"on": 1}, "on is 1, not true or false"),
    ):
        with pytest.raises(ValueError) as error:
            build(Outer, value | change)
        assert str(error.value) == says


def test_a_disk_that_fails_is_named(tmp_path):
    """Opening works, and reading does not: as with a file of another process's memory."""
    with pytest.raises(UserError, match=rf"mem: cannot be read \({os.strerror(errno.EIO)}\)"):
        check_input("/proc/self/mem", "list")

"""Checkpoints that are damaged or made to harm: bombs, code, impossible sizes, flipped bits.

No code of a checkpoint is ever run, and nothing is built before its size is known to be possible.
"""

import json
import os
import pty
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_tools import TENSORS, load, refused, write_header
from safetensors.torch import save_file

from livetalk_model.config import AudioEncoderConfig, DiTConfig
from livetalk_model.encoders.audio import AudioEncoder
from livetalk_model.weights.tensor_files import open_weights


@pytest.mark.parametrize(
    ("offsets", "says"),
    [
        (
            [[0, 16], [0, 16], [32, 48]],
            "its tensors overlap",
        ),  # 48 bytes in all, as there should be
        ([[0, 16], [8, 24], [24, 40]], "its tensors overlap"),
        ([[0, 16], [24, 40], [40, 56]], "its tensors leave gaps"),
        ([[8, 24], [24, 40], [40, 56]], "its tensors leave gaps"),
    ],
)
def test_overlapping_tensors(tmp_path, offsets, says):
    path = tmp_path / "x.safetensors"
    entries = {
        name: {"dtype": "F32", "shape": [4], "data_offsets": place}
        for name, place in zip("abc", offsets, strict=True)
    }
    write_header(path, entries, bytes(max(end for _, end in offsets)))
    assert says in refused(lambda: open_weights(path))


def test_a_header_that_never_ends(tmp_path):
    """Its length is checked before it is read, and so are the numbers in it."""
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((1 << 40).to_bytes(8, "little"))
        file.truncate(1 << 41)
    assert "no header of a safetensors file" in refused(lambda: open_weights(path))
    for shape in ([2**62] * 10_000, [0, 2**70], [1] * 65):
        write_header(
            path, {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}, bytes(4)
        )
        assert "truncated or damaged" in refused(lambda: open_weights(path))
    for text in (b'{"a":1,"a":2}', b"[" * 100_000, b'{"a":NaN}', b"\xff\xfe{\0"):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        assert "truncated or damaged, its header" in refused(lambda: open_weights(path))


def rezip(path: Path, change: Callable[[zipfile.ZipInfo, bytes], tuple[zipfile.ZipInfo, bytes]]):
    """Write a zip again with other members."""
    with zipfile.ZipFile(path) as old:
        members = [(info, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for info, data in members:
            new.writestr(*change(info, data))


def test_a_pickle_that_swells(tmp_path):
    """600 MB in 0.6 MB: refused by the zip's directory, before anything is unpacked."""
    path = tmp_path / "x.pth"
    torch.save(TENSORS, path)

    def swell(info: zipfile.ZipInfo, data: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        if info.filename.endswith("data.pkl"):
            info.compress_type = zipfile.ZIP_DEFLATED
            data = b"\x80\x02" + b"N0" * (50 << 20) + data[2:]
        return info, data

    rezip(path, swell)
    assert path.stat().st_size < 1 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "holds compressed files (x/data.pkl)" in refused(lambda: open_weights(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10


def test_a_pickle_that_is_too_large(tmp_path):
    """As it is, without compression."""
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", b"N0" * (33 << 20))
    assert "data.pkl has 69206016 bytes, 67108864 is the most" in refused(
        lambda: open_weights(path)
    )


def test_other_members_that_swell_and_too_many(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    torch.save(TENSORS, path)

    def pack(info: zipfile.ZipInfo, data: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        if "/data/" in info.filename:
            info.compress_type = zipfile.ZIP_DEFLATED
        return info, data

    rezip(path, pack)
    assert "holds compressed files (x/data/0, " in refused(lambda: open_weights(path))
    torch.save(TENSORS, path)
    whole = path.read_bytes()
    for damage in (
        whole[:-22],
        whole[:-1],
        b"PK\3\4" * 99,
        b"PK\3\4" * 9 + b"PK\5\6" + b"\x7f" * 18,
    ):
        path.write_bytes(damage)
        assert "truncated or damaged" in refused(lambda: open_weights(path))
    monkeypatch.setattr("livetalk_model.weights.tensor_files._MAX_MEMBERS", 5)
    path.write_bytes(whole)
    assert "files, 5 is the most" in refused(lambda: open_weights(path))


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_are_larger_than_what_is_stored(tmp_path, zipped):
    """One number that claims to be a matrix of 4 EB: loading it would ask for that memory."""
    path = tmp_path / "x.pth"
    huge = torch.ones(1).expand(10**9, 10**9)
    torch.save({"a": huge}, path, _use_new_zipfile_serialization=zipped)
    assert "larger than what is stored" in refused(lambda: open_weights(path))
    shared = torch.arange(16.0).reshape(4, 4)  # two names for one storage are no fault
    torch.save({"a": shared, "b": shared.T}, path, _use_new_zipfile_serialization=zipped)
    with open_weights(path) as files:
        assert torch.equal(files.read("b"), shared.T)


@pytest.mark.parametrize(
    ("config", "change", "says"),
    [
        (DiTConfig, {"num_layers": 10**9}, "num_layers: must be a positive integer, 1024 at most"),
        (DiTConfig, {"dim": 10**18, "ffn_dim": 10**18}, "dim: must be a positive integer, 65536"),
        (DiTConfig, {"num_heads": 10**30}, "num_heads: 1000000"),
        (DiTConfig, {"num_layers": 1024, "dim": 65536, "num_heads": 1024}, "parameters or more"),
        (DiTConfig, {"in_dim": 10**6, "out_dim": 499_998}, "in_dim: must be"),
        (DiTConfig, {"text_len": 10**12}, "text_len: must be"),
        (DiTConfig, {"audio_window": 10**9 + 1}, "audio_window: must be"),
        (AudioEncoderConfig, {"num_hidden_layers": 10**9}, "num_hidden_layers: must be"),
        (AudioEncoderConfig, {"hidden_size": 10**18}, "hidden_size: must be"),
        (AudioEncoderConfig, {"conv_dim": [10**18] * 7}, "conv_dim: must be"),
        (AudioEncoderConfig, {"conv_kernel": [10**9] * 7}, "conv_kernel: must be"),
        (AudioEncoderConfig, {"conv_dim": [1] * 10**5}, "conv_dim: 100000 entries, 64 is the most"),
        (AudioEncoderConfig, {"num_conv_pos_embeddings": 10**9}, "num_conv_pos_embeddings: must"),
    ],
)
def test_sizes_are_bounded_where_they_are_parsed(tmp_path, config, change, says):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "i2v"} | change))
    said = refused(lambda: config.from_json(path))
    assert str(path) in said and says in said


def test_an_audio_encoder_of_impossible_size_is_not_built(golden_checkpoint, tmp_path):
    """Nor does it run the code that its configuration names."""
    copy = tmp_path / "audio"
    copy.mkdir()
    whole = golden_checkpoint("w2v_small")
    (copy / "model.safetensors").symlink_to(whole / "model.safetensors")
    values = json.loads((whole / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 10**9}))
    said = refused(lambda: AudioEncoder.from_folder(copy, device="cpu"))
    assert "num_hidden_layers: must be a positive integer" in said
    code = {"auto_map": {"AutoModel": "code.Model", "AutoConfig": "code.Config"}}
    (copy / "code.py").write_text("raise SystemExit('ran')")
    (copy / "config.json").write_text(json.dumps(values | code))
    assert AudioEncoder.from_folder(copy, device="cpu").layers == values["num_hidden_layers"]


TOKENIZER = """\
import sys
from livetalk_kernels.errors import UserError
from livetalk_model.encoders.text import load_tokenizer
try:
    load_tokenizer(sys.argv[1])
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("answers", [True, False])
def test_a_tokenizers_code_is_never_run_and_nobody_is_asked(tmp_path, answers):
    """Neither at a terminal where somebody says yes, nor where nobody is."""
    ran = tmp_path / "ran"
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w'); raise SystemExit('ran')")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]},
                    "tokenizer_class": "Tokenizer"})
    )  # fmt: skip
    master, slave = pty.openpty()
    os.write(master, b"y\ny\ny\n")
    done = subprocess.run(
        [sys.executable, "-c", TOKENIZER, str(folder)],
        stdin=slave if answers else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(master)
    os.close(slave)
    assert not ran.exists()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{folder}: not a usable tokenizer (")
    assert done.stdout.count("\n") == 1 and "[y/N]" not in done.stdout + done.stderr


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_flipped_bit_that_matters_is_noticed(tmp_path, suffix):
    """Without a manifest too: the top bit of an exponent makes a weight that no training leaves."""
    path = tmp_path / f"x{suffix}"
    weights = TENSORS | {"blocks.3.weight": torch.full((4, 4), 0.02)}
    (save_file if suffix == ".safetensors" else torch.save)(weights, path)
    assert load(path)
    data = bytearray(path.read_bytes())
    place = data.find(torch.tensor(0.02).numpy().tobytes() * 4)
    data[place + 3] ^= 0x40  # of a little-endian float32
    path.write_bytes(data)
    said = refused(lambda: load(path))
    assert f"{path}: blocks.3.weight holds" in said and "the file is damaged" in said


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_no_training_leaves(tmp_path, value, dtype):
    path = tmp_path / "x.safetensors"
    weights = {key: tensor.to(dtype, copy=True) for key, tensor in TENSORS.items()}
    weights["blocks.3.weight"][1, 2] = value
    save_file(weights, path)
    assert "blocks.3.weight holds" in refused(lambda: load(path))


LIMITED = """\
import resource, sys
from pathlib import Path
import torch
from livetalk_kernels.errors import UserError
from livetalk_model.weights.tensor_files import open_weights
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
try:
    with open_weights(sys.argv[1]) as files:
        files.read("a")
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_limit_of_the_address_space(tmp_path, suffix):
    """``ulimit -v``: what cannot be mapped is said, with the limit as the cure."""
    path = tmp_path / f"x{suffix}"
    if suffix == ".pth":
        torch.save({"a": torch.zeros(128 << 20, dtype=torch.uint8)}, path)
    else:
        entry = {"dtype": "U8", "shape": [1 << 31], "data_offsets": [0, 1 << 31]}
        write_header(path, {"a": entry})
        with path.open("r+b") as stream:
            stream.truncate(path.stat().st_size + (1 << 31))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ulimit -v" in done.stdout and done.stdout.count("\n") == 1, done.stdout

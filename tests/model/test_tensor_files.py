"""Damaged and hostile checkpoint files: one line that names the file, and no code is run."""

import json
import os
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from livetalk_kernels.errors import UserError
from livetalk_model.weights.fill import open_weights

INDEX = "diffusion_pytorch_model.safetensors.index.json"
TENSORS = {f"layer{number}.weight": torch.full((4, 4), float(number)) for number in range(6)}


def bad(path: Path, match: str) -> str:
    """Opening must fail with one line that names a file; the line."""
    with pytest.raises(UserError, match=match) as error:
        open_weights(path)
    message = str(error.value)
    assert "\n" not in message and path.name in message, message
    return message


@pytest.mark.parametrize("keep", [0, 5, 100, -10])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_file(tmp_path, suffix, keep):
    path = tmp_path / f"x{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(TENSORS, path)
    path.write_bytes(path.read_bytes()[:keep])
    bad(path, "empty|truncated|not a PyTorch")


def test_too_long_file(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes() + b"more")
    bad(path, "truncated or damaged")


def write_header(path: Path, header: object, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        {"a": 3},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
        {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"},
    ],
)
def test_impossible_header(tmp_path, entries):
    path = tmp_path / "x.safetensors"
    write_header(path, entries, bytes(8))
    bad(path, "truncated or damaged")


def test_tensors_at_odd_places_and_empty_ones(tmp_path):
    """Old writers do not pad the header, so that a float can begin at any byte."""
    path = tmp_path / "x.safetensors"
    values = torch.arange(3.0)
    entries = {
        "none": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]},
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "odd": {"dtype": "F32", "shape": [3], "data_offsets": [1, 13]},
        "__metadata__": {"format": "pt"},
    }
    write_header(path, entries, b"\x07" + values.numpy().tobytes())
    with open_weights(path) as files:
        assert torch.equal(files.read("odd"), values)
        assert files.read("byte").item() == 7
        assert files.read("none").shape == (0, 4)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".txt"])
def test_text_file(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_text("this is no checkpoint, but long enough for a header\n" * 4)
    bad(path, "damaged|not a PyTorch|unknown kind")


def test_damaged_legacy_pickle(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for damaged in (content[:-3], content[:40], b"\x80\x02garbage that is no pickle"):
        path.write_bytes(damaged)
        bad(path, "truncated|cannot be read")


def test_missing_file_and_folder(tmp_path):
    bad(tmp_path / "nothing.safetensors", "check the path")
    bad(tmp_path / "nothing.pth", "check the path")
    bad(tmp_path, "no weights found")


class Code:
    """Unpickling it would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, zipped):
    path, target = tmp_path / "x.pth", tmp_path / "made_by_code"
    content = {"a": torch.ones(1), "b": Code(target)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = bad(path, "holds code")
    assert "mkdir" in message and not target.exists()


def test_a_module_and_other_contents_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(nn.Linear(2, 2), path)
    bad(path, "holds code")
    for content in ([torch.ones(1)], {}, torch.ones(1)):
        torch.save(content, path)
        bad(path, "no tensors by name")
    torch.save({"epoch": 3, "state_dict": OrderedDict(a=torch.ones(1))}, path)
    assert "epoch" in bad(path, "2 entries are not tensors")


def sharded(folder: Path) -> dict[str, str]:
    """Write ``TENSORS`` as three shards with an index; key -> shard."""
    shard_of = {
        key: f"diffusion_pytorch_model-0000{1 + number % 3}-of-00003.safetensors"
        for number, key in enumerate(sorted(TENSORS))
    }
    for shard in set(shard_of.values()):
        save_file({key: TENSORS[key] for key in TENSORS if shard_of[key] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return shard_of


def test_missing_shard(tmp_path):
    shard = next(iter(sharded(tmp_path).values()))
    (tmp_path / shard).unlink()
    assert shard in bad(tmp_path, "1 of 3 shards missing")


def test_truncated_shard(tmp_path):
    shard = tmp_path / next(iter(sharded(tmp_path).values()))
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(UserError, match=f"{re.escape(shard.name)}.*truncated"):
        open_weights(tmp_path)


def test_index_names_keys_that_are_not_there(tmp_path):
    shard_of = sharded(tmp_path)
    index = tmp_path / INDEX
    first = next(iter(shard_of))
    other = next(shard for shard in shard_of.values() if shard != shard_of[first])
    for change in ({"nowhere": shard_of[first]}, {first: other}):
        index.write_text(json.dumps({"weight_map": shard_of | change}))
        assert next(iter(change)) in bad(tmp_path, "1 keys are not in the shard")


@pytest.mark.parametrize("weight_map", [None, {}, [1], {"a": "../x.safetensors"}, {"a": 3}])
def test_damaged_index(tmp_path, weight_map):
    sharded(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    bad(tmp_path, "no weight_map|not a file name")


def test_shards_without_index(tmp_path):
    sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    bad(tmp_path, r"3 shards but no .safetensors.index.json")


def test_key_in_two_files(tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        save_file({"same": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"b\.safetensors.*a\.safetensors.*same"):
        open_weights(paths)

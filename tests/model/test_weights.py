import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from livetalk_kernels.errors import UserError
from livetalk_model.weights.fill import Slot, expected_keys, load_module, open_weights

INDEX = "diffusion_pytorch_model.safetensors.index.json"
SINGLE = "diffusion_pytorch_model.safetensors"


class Small(nn.Module):
    """A bit of everything: matrix, norm, modulation, buffers, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.norm = nn.LayerNorm(4)
        self.modulation = nn.Parameter(torch.empty(1, 6, 4))
        self.tied = nn.Linear(4, 12)
        self.tied.weight = self.qkv.weight
        self.register_buffer("mean", torch.empty(4))
        self.register_buffer("steps", torch.empty(2, dtype=torch.int64))
        self.register_buffer("scratch", torch.empty(3), persistent=False)


KEY_MAP = {
    f"{part}.{kind}": Slot(f"qkv.{kind}", slice(4 * index, 4 * index + 4))
    for index, part in enumerate("qkv")
    for kind in ("weight", "bias")
}


def small() -> Small:
    with torch.device("meta"):
        return Small()


def small_tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = expected_keys(small(), KEY_MAP)
    tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    return tensors | {"steps": torch.tensor([3, 5])}


def load(path: Path, **options) -> Small:
    module = small()
    options = {"dtype": torch.float32, "device": "cpu", "key_map": KEY_MAP} | options
    with open_weights(path) as files:
        load_module(module, files, **options)
    return module


def bad(path: Path, match: str, **options) -> str:
    """Loading must fail with one line that names a file; the line."""
    with pytest.raises(UserError, match=match) as error:
        load(path, **options)
    message = str(error.value)
    assert "\n" not in message and path.name in message, message
    return message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_loads_every_format_into_fused_parameters(tmp_path, suffix):
    path, tensors = tmp_path / f"x{suffix}", small_tensors()
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    module = load(path)
    for index, part in enumerate("qkv"):
        rows = slice(4 * index, 4 * index + 4)
        assert torch.equal(module.qkv.weight[rows], tensors[f"{part}.weight"])
        assert torch.equal(module.qkv.bias[rows], tensors[f"{part}.bias"])
    assert torch.equal(module.modulation, tensors["modulation"])
    assert torch.equal(module.mean, tensors["mean"])
    assert torch.equal(module.steps, tensors["steps"])
    assert module.tied.weight is module.qkv.weight
    assert module.scratch.is_meta  # not in a checkpoint; left to its owner
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_expected_keys_of_fused_parameters():
    keys = expected_keys(small(), KEY_MAP)
    assert keys["q.weight"] == keys["v.weight"] == (4, 4)
    assert keys["k.bias"] == (4,)
    assert keys["modulation"] == (1, 6, 4)
    assert not keys.keys() & {"qkv.weight", "tied.weight", "scratch"}
    assert expected_keys(small())["qkv.weight"] == (12, 4)


@pytest.mark.parametrize(
    "stored", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_any_float_is_cast(tmp_path, stored, wanted):
    path, tensors = tmp_path / "x.safetensors", small_tensors(stored)
    save_file(tensors, path)
    module = load(path, dtype=wanted)
    assert module.qkv.weight.dtype == module.mean.dtype == wanted
    assert module.steps.dtype == torch.int64
    assert torch.equal(module.norm.weight, tensors["norm.weight"].to(wanted))


def test_reading_is_mapped_and_shapes_come_from_headers(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3)}, path)
    with open_weights(path) as files:
        assert files.shapes == {"a": ((2, 3), torch.float32)}
        assert files.paths == (path,)
        assert torch.equal(files.read("a"), torch.arange(6.0).reshape(2, 3))


def test_legacy_format_without_zip(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(small_tensors(), path, _use_new_zipfile_serialization=False)
    assert torch.equal(load(path).mean, small_tensors()["mean"])


def sharded(folder: Path) -> dict[str, str]:
    """Write ``small_tensors`` as three shards with an index; key -> shard."""
    tensors = small_tensors()
    shard_of = {
        key: f"diffusion_pytorch_model-0000{1 + number % 3}-of-00003.safetensors"
        for number, key in enumerate(sorted(tensors))
    }
    for shard in set(shard_of.values()):
        save_file({key: tensors[key] for key in tensors if shard_of[key] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return shard_of


def test_shards_equal_one_file(tmp_path):
    sharded(tmp_path)
    save_file(small_tensors(), tmp_path / "one.safetensors")
    whole = load(tmp_path / "one.safetensors").state_dict()
    for source in (tmp_path, tmp_path / INDEX):
        parts = load(source).state_dict()
        assert all(torch.equal(parts[key], value) for key, value in whole.items())
    with open_weights(sorted(tmp_path.glob("diffusion*.safetensors"))) as files:
        assert files.shapes.keys() == small_tensors().keys()


@pytest.mark.golden
def test_golden_shards_equal_one_file(golden_checkpoint):
    with (
        open_weights(golden_checkpoint("tiny_a")) as one,
        open_weights(golden_checkpoint("tiny_a_sharded")) as three,
    ):
        assert one.shapes == three.shapes
        assert (len(one.paths), len(three.paths)) == (1, 3)
        assert all(torch.equal(one.read(key), three.read(key)) for key in one.shapes)


# What does not fit --------------------------------------------------------------------------


def test_all_problems_are_counted_and_listed(tmp_path):
    tensors = small_tensors()
    del tensors["q.weight"], tensors["mean"]
    tensors["mystery"] = torch.ones(1)
    tensors["modulation"] = torch.ones(6, 4)
    tensors["norm.weight"] = torch.ones(4, dtype=torch.int32)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    message = bad(path, "do not fit")
    assert "2 missing" in message and "q.weight" in message and "mean" in message
    assert "1 unexpected (mystery)" in message
    assert "2 wrong" in message
    assert "shape [6, 4] instead of [1, 6, 4]" in message
    assert "torch.int32" in message


def test_long_lists_are_cut(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(small_tensors() | {f"extra{n:02}": torch.ones(1) for n in range(30)}, path)
    message = bad(path, "30 unexpected")
    assert "extra07, and 22 more" in message and "extra08" not in message
    load(path, ignore=("extra",))


def test_integer_buffers_keep_their_dtype(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(small_tensors() | {"steps": torch.ones(2)}, path)
    bad(path, "steps: dtype")


def test_nothing_is_allocated_before_the_check(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, path)
    module = small()
    with open_weights(path) as files, pytest.raises(UserError):
        load_module(module, files, dtype=torch.float32, device="no device", key_map=KEY_MAP)
    assert all(parameter.is_meta for parameter in module.parameters())


def test_key_maps_must_cover_every_row_once():
    half = {"a": Slot("qkv.weight", slice(0, 6))}
    twice = half | {"b": Slot("qkv.weight", slice(4, 12))}
    for key_map in (half, twice, {"a": Slot("nothing")}):
        with pytest.raises(AssertionError):
            expected_keys(small(), key_map)


# Memory -------------------------------------------------------------------------------------

MEASURE = """
import re, sys, threading
import torch
from torch import nn
from livetalk_model.weights.fill import load_module, open_weights

def anonymous():
    status = open("/proc/self/status").read()
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", status)[1])

class Matrices(nn.Module):
    def __init__(self, count, side):
        super().__init__()
        for number in range(count):
            setattr(self, f"m{number:02}", nn.Parameter(torch.empty(side, side)))

count, side = int(sys.argv[2]), int(sys.argv[3])
with torch.device("meta"):
    warm, module = Matrices(1, 1), Matrices(count, side)
torch.ones(8).bfloat16() + 1
peak, done = [0], threading.Event()

def sample():
    while not done.wait(0.0005):
        peak[0] = max(peak[0], anonymous())

before = anonymous()
thread = threading.Thread(target=sample)
thread.start()
with open_weights(sys.argv[1]) as files:
    load_module(module, files, dtype=torch.bfloat16, device="cpu")
    done.set()
    thread.join()
    peak[0] = max(peak[0], anonymous())
destination = sum(p.nbytes for p in module.parameters())
print(peak[0] - before - destination, destination, peak[0] - before)
"""


@pytest.mark.parametrize("kind", ["sharded", "pth"])
def test_peak_memory_beyond_the_destination(tmp_path, kind, record_property):
    count, per_shard, side = 18, 3, 2048
    tensors = {f"m{number:02}": torch.zeros(side, side) for number in range(count)}
    if kind == "pth":
        path = tmp_path / "all.pth"
        torch.save(tensors, path)
        largest = path.stat().st_size
    else:
        path = tmp_path
        shard_of = {
            key: f"diffusion_pytorch_model-{number // per_shard}.safetensors"
            for number, key in enumerate(tensors)
        }
        for shard in set(shard_of.values()):
            part = {key: value for key, value in tensors.items() if shard_of[key] == shard}
            save_file(part, tmp_path / shard)
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": shard_of}))
        largest = max((tmp_path / shard).stat().st_size for shard in shard_of.values())
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(count), str(side)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    extra, destination, seen = (int(word) for word in result.stdout.split())
    record_property("peak_anonymous_bytes_beyond_destination", extra)
    print(f"{kind}: {extra / 2**20:.1f} MiB beyond {destination / 2**20:.0f} MiB")
    assert seen > 0.9 * destination  # the sampler has seen the load
    assert extra < 1.2 * largest
    assert extra < 0.2 * largest  # mapped: what we promise is much less

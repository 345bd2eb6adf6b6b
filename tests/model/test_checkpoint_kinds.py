"""Checkpoints as people really have them, named for what they are.

Each test is a kind: what a download left behind, or what another program wrote.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from checkpoint_tools import DIT, FP8, INDEX, TENSORS, VAE, load, refused, write_header
from safetensors.torch import load_file, save_file

from livetalk_kernels.inputs import LFS_HEAD
from livetalk_model.avatar import Avatar, load_embedding
from livetalk_model.completeness import Component, inspect_checkpoint
from livetalk_model.encoders.text import load_tokenizer
from livetalk_model.loading import load_pipeline
from livetalk_model.weights.checkpoint import CheckpointFolder
from livetalk_model.weights.tensor_files import open_weights

# What a download leaves behind --------------------------------------------------------------


@pytest.fixture
def folder(golden_checkpoint, tmp_path) -> Path:
    """The smallest whole checkpoint, in links that are to be changed."""
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for file in golden_checkpoint("tiny_a").iterdir():
        (copy / file.name).symlink_to(file)
    return copy


def row(folder: Path, name: str) -> Component:
    report = inspect_checkpoint(folder)
    return next(part for part in report.components if part.name == name)


@pytest.mark.parametrize("file", ["config.json", DIT, VAE])
def test_pointers_and_dangling_links_are_named(folder, file):
    """Also by doctor, whose rows say the same as what loads."""
    path, part = folder / file, "VAE" if file == VAE else "DiT"
    for make, says in (
        (lambda: path.write_bytes(LFS_HEAD + b"v1\noid sha256:0\nsize 9\n"), "git lfs pull"),
        (lambda: path.symlink_to("../../blobs/0abc"), "is a link to ../../blobs/0abc"),
        (lambda: os.mkfifo(path), "is a pipe"),
    ):
        path.unlink()
        make()
        whole = CheckpointFolder(folder)
        said = refused(whole.vae_config if file == VAE else whole.dit_config)
        assert str(path) in said and says in said
        found = row(folder, part)
        assert (found.status, found.problem) == ("broken", said)


def test_a_tokenizer_that_was_not_downloaded(folder):
    tokenizer = folder / "google/umt5-xxl"
    tokenizer.mkdir(parents=True)
    (tokenizer / "spiece.model").write_bytes(LFS_HEAD + b"v1\n")
    said = refused(lambda: load_tokenizer(tokenizer))
    assert "spiece.model: is a Git LFS pointer" in said
    assert (row(folder, "tokenizer").status, row(folder, "tokenizer").problem) == ("broken", said)


def sharded(folder: Path) -> list[Path]:
    """Write ``TENSORS`` as two shards with an index."""
    shards = [folder / f"x-0000{number}-of-00002.safetensors" for number in (1, 2)]
    keys = [list(TENSORS)[:3], list(TENSORS)[3:]]
    for shard, own in zip(shards, keys, strict=True):
        save_file({key: TENSORS[key] for key in own}, shard)
    names = {key: shard.name for shard, own in zip(shards, keys, strict=True) for key in own}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 384}, "weight_map": names}))
    return shards


def test_partial_shards(tmp_path):
    """Whatever a broken download leaves of a shard, the shard is named."""
    first, second = sharded(tmp_path)
    assert load(tmp_path).keys() == TENSORS.keys()
    whole = second.read_bytes()
    for length in (0, 3, 8, 100, len(whole) // 2, len(whole) - 1):
        second.write_bytes(whole[:length])
        assert second.name in refused(lambda: open_weights(tmp_path))
    second.write_bytes(whole + b"\0")
    assert f"{second.name}: truncated or damaged" in refused(lambda: open_weights(tmp_path))
    second.write_bytes(bytes(len(whole)))  # as a client makes room for it
    assert f"{second.name}: truncated or damaged" in refused(lambda: open_weights(tmp_path))
    second.rename(tmp_path / f"{second.name}.incomplete")
    assert f"1 of 2 shards missing ({second.name})" in refused(lambda: open_weights(tmp_path))
    second.symlink_to("../../blobs/0abc")
    assert f"{second.name}: is a link to" in refused(lambda: open_weights(tmp_path))
    second.unlink()
    second.write_bytes(first.read_bytes())  # the wrong one under this name
    assert "3 keys are in" in refused(lambda: open_weights(tmp_path))


# What another program wrote -----------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "prefix",
    ["model.diffusion_model.", "diffusion_model.", "module.", "_orig_mod.", "module._orig_mod.",
     "model.", "dit."],
)  # fmt: skip
def test_a_prefix_of_every_key_is_left_off(tmp_path, prefix, suffix):
    path = tmp_path / f"x{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(
        {prefix + key: tensor for key, tensor in TENSORS.items()}, path
    )
    loaded = load(path)
    assert all(torch.equal(loaded[key], tensor) for key, tensor in TENSORS.items())


def test_a_prefix_in_shards_with_an_index(tmp_path):
    for shard in sharded(tmp_path):
        save_file({f"module.{key}": tensor for key, tensor in load_file(shard).items()}, shard)
    names = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    index = {"weight_map": {f"module.{key}": shard for key, shard in names.items()}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert torch.equal(load(tmp_path)["blocks.4.weight"], TENSORS["blocks.4.weight"])
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": names}))  # without it in the index
    assert "6 keys are not in the shard" in refused(lambda: open_weights(tmp_path))


def test_a_prefix_of_some_keys_is_named(tmp_path):
    """A file that holds more than this model: its other parts would be in the way."""
    path = tmp_path / "x.safetensors"
    prefixed = {f"model.diffusion_model.{key}": tensor for key, tensor in TENSORS.items()}
    save_file(prefixed | {"first_stage_model.a": torch.ones(1)}, path)
    said = refused(lambda: load(path))
    assert "6 of those missing are there with 'model.diffusion_model.' in front" in said
    save_file({"a": torch.ones(1)}, path)
    assert "use the checkpoint that belongs" in refused(lambda: load(path))


def test_a_plain_cast_to_fp8_is_approximate(golden_checkpoint, folder, caplog):
    """It loads, and says so: on stderr, in every report, and in doctor."""
    encoder = golden_checkpoint("w2v_768")
    assert load_pipeline(checkpoint=folder, audio_encoder=encoder, device="cpu").approximate == []
    tensors = {
        key: tensor.to(FP8) if tensor.ndim == 2 else tensor
        for key, tensor in load_file(folder / DIT).items()
    }
    (folder / DIT).unlink()
    save_file(tensors, folder / DIT)
    assert not caplog.messages
    pipeline = load_pipeline(checkpoint=folder, audio_encoder=encoder, device="cpu")
    assert pipeline.approximate == ["FP8 weights"]
    (said,) = caplog.messages
    assert said.startswith(f"{folder}: the weights were cast to FP8 without scales")
    assert "approximate; use the bf16 weights, with --precision fp8" in said
    found = row(folder, "DiT")
    assert (found.status, found.problem) == ("found", said)
    weight = pipeline.dit.state_dict()["text_embedding.0.weight"]
    assert torch.equal(weight, tensors["text_embedding.0.weight"].float())
    # Quantised again, row by row, it is still the same numbers.
    quantised = load_pipeline(
        checkpoint=folder, audio_encoder=encoder, device="cpu", precision="fp8"
    )
    assert quantised.approximate == ["FP8 weights"]


def test_fp8_with_scales_of_another_program(tmp_path):
    path = tmp_path / "x.safetensors"
    cast = {key: tensor.to(FP8) for key, tensor in TENSORS.items()}
    scales = {key.replace(".weight", ".scale_weight"): torch.ones(()) for key in TENSORS}
    save_file(cast | scales, path)
    said = refused(lambda: load(path))
    assert "FP8 weights with scales of another program" in said and "scale_weight" in said


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "I64", "C64"])
def test_coarse_and_unknown_dtypes_are_named(tmp_path, dtype):
    """In embeddings and avatars, where floats are needed."""
    path, bits = tmp_path / "x.safetensors", {"F4": 4, "F6_E2M3": 6, "I64": 64, "C64": 64}
    size = 64 * bits.get(dtype, 8) // 8
    write_header(
        path,
        {"context": {"dtype": dtype, "shape": [1, 64], "data_offsets": [0, size]}},
        bytes(size),
    )
    said = refused(lambda: load_embedding(path, "context"))
    names = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I64": "int64"}
    assert (
        "context" in said
        and names.get(dtype, dtype) in said
        and "BF16" in said.replace("bfloat16", "BF16")
    )
    assert "download" not in said


def avatar_tensors() -> dict[str, torch.Tensor]:
    return {
        "context": torch.zeros(2, 4096), "clip_fea": torch.zeros(1, 257, 1280),
        "condition": torch.zeros(16, 9, 2, 2),
        "portrait": torch.zeros(3, 16, 16, dtype=torch.uint8),
    }  # fmt: skip


def test_avatars_of_other_dtypes(tmp_path):
    path, texts = tmp_path / "x.avatar", {"format": "livetalk-avatar-1", "model": "a"}
    save_file(avatar_tensors(), path, texts)
    assert Avatar.load(path).size == (16, 16)
    for name, dtype in (("context", FP8), ("clip_fea", torch.int32), ("condition", torch.uint8)):
        tensors = avatar_tensors()
        tensors[name] = tensors[name].to(dtype)
        save_file(tensors, path, texts)
        assert f"{path}: {name} is " in refused(lambda: Avatar.load(path))
    for name in ("context", "condition"):
        tensors = avatar_tensors()
        tensors[name].view(-1)[3] = torch.nan
        save_file(tensors, path, texts)
        assert f"{name} holds NaN or Inf" in refused(lambda: Avatar.load(path))
    tensors = avatar_tensors() | {"portrait": torch.zeros(3, 16, 16)}
    save_file(tensors, path, texts)
    assert "do not fit together" in refused(lambda: Avatar.load(path))

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from livetalk_kernels.errors import UserError
from livetalk_model.completeness import CheckpointReport, Component, inspect_checkpoint
from livetalk_model.config import VAEConfig
from livetalk_model.weights.checkpoint import CheckpointFolder

DIT = "diffusion_pytorch_model.safetensors"
VAE = "Wan2.1_VAE.pth"
T5 = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"


@pytest.fixture
def folder(golden_checkpoint, tmp_path) -> Path:
    """A copy of the smallest golden checkpoint, to be damaged."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(golden_checkpoint("tiny_a"), copy)
    return copy


@pytest.fixture(scope="session")
def wav2vec2(golden_checkpoint) -> Path:
    return golden_checkpoint("w2v_768")


def row(report: CheckpointReport, name: str) -> Component:
    return next(component for component in report.components if component.name == name)


def broken(report: CheckpointReport, name: str, *words: str) -> None:
    """That row is broken, says why in one line, and no other row is."""
    assert [part.name for part in report.components if part.status == "broken"] == [name]
    problem = row(report, name).problem
    assert "\n" not in problem
    assert all(word in problem for word in words), problem
    assert not report.complete


# Configuration ------------------------------------------------------------------------------


def test_configs_come_from_files_and_shapes(golden_checkpoint):
    folder = CheckpointFolder(golden_checkpoint("tiny_b"))
    config = folder.dit_config(12, 768)
    assert config == folder.dit_config()
    assert (config.dim, config.num_heads, config.output_dim) == (1024, 8, 768)
    assert folder.vae_config() == VAEConfig(dim=16)
    assert folder.vae.name == VAE


def audio_width(folder: Path, features: int) -> None:
    """Make the DiT take that many audio numbers a frame."""
    tensors = load_file(folder / DIT)
    for key, frames in (("proj1", 5), ("proj1_vf", 8)):
        tensors[f"audio_proj.{key}.weight"] = torch.zeros(16, frames * features)
    save_file(tensors, folder / DIT)


def test_audio_size_comes_from_the_shapes_and_the_encoder(folder):
    audio_width(folder, 4 * 96)
    assert CheckpointFolder(folder).dit_config(4, 96).audio_features == 4 * 96
    guessed = CheckpointFolder(folder).dit_config()
    assert (guessed.audio_layers, guessed.audio_dim) == (12, 32)
    with pytest.raises(UserError, match=r"12 x 768 = 9216.*--audio-encoder"):
        CheckpointFolder(folder).dit_config(12, 768)
    audio_width(folder, 100)  # 12 layers do not divide it, and nobody says how many do
    guessed = CheckpointFolder(folder).dit_config()
    assert (guessed.audio_layers, guessed.audio_dim) == (1, 100)


def test_audio_size_in_config_json_wins(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"audio_layers": 6}))
    assert CheckpointFolder(folder).dit_config().audio_layers == 6


def test_missing_parts_say_what_to_do(folder, tmp_path):
    with pytest.raises(UserError, match=r"no such folder.*config\.json"):
        CheckpointFolder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"{T5}: missing.*--prompt-embeds"):
        _ = CheckpointFolder(folder).text_encoder
    with pytest.raises(UserError, match=r"umt5-xxl: missing.*--prompt-embeds"):
        _ = CheckpointFolder(folder).tokenizer
    with pytest.raises(UserError, match=rf"{CLIP}: missing.*--image-embeds"):
        _ = CheckpointFolder(folder).image_encoder
    (folder / VAE).unlink()
    with pytest.raises(UserError, match=f"{VAE}: missing"):
        CheckpointFolder(folder).vae_config()
    torch.save({"a": torch.ones(1)}, folder / VAE)
    with pytest.raises(UserError, match="no convolution"):
        CheckpointFolder(folder).vae_config()


# Reports ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny_a", "tiny_a_sharded", "tiny_a128", "tiny_b"])
def test_golden_folders_are_complete(golden_checkpoint, wav2vec2, name):
    report = inspect_checkpoint(golden_checkpoint(name), wav2vec2)
    assert report.complete and not report.can_prepare
    states = {part.name: part.status for part in report.components}
    assert states == {
        "DiT": "found",
        "VAE": "found",
        "audio encoder": "found",
        "text encoder": "missing",
        "tokenizer": "missing",
        "image encoder": "missing",
    }
    dit = row(report, "DiT")
    with_tensors = load_tensors(golden_checkpoint(name))
    assert dit.tensors == len(with_tensors)
    assert dit.parameters == sum(tensor.numel() for tensor in with_tensors.values())
    assert dit.dtypes == ("float32",)
    assert dit.bytes == sum(file.stat().st_size for file in dit.files)
    assert T5 in row(report, "text encoder").problem


def test_published_dit_is_known_from_its_header(facts, tmp_path):
    """All 18.9 B parameters in bf16, in a file that takes no space on the disk."""
    published = facts["dit"]
    config = published["config_json_written_by_save_pretrained"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for tensor in published["tensors"]:
        first, last = tensor.get("i", (0, 0))
        for layer in range(first, last + 1):
            begin, end = end, end + 2 * math.prod(tensor["shape"])
            entry = {"dtype": "BF16", "shape": tensor["shape"], "data_offsets": [begin, end]}
            header[tensor["key"].replace("{i}", str(layer))] = entry
    text = json.dumps(header).encode()
    with (tmp_path / DIT).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    dit = row(inspect_checkpoint(tmp_path), "DiT")
    assert (dit.status, dit.problem) == ("found", "")
    assert dit.tensors == published["num_tensors"]
    assert dit.parameters == published["total_params"]
    assert dit.dtypes == ("bfloat16",)


def load_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def test_without_an_audio_encoder_it_is_not_checked(folder):
    report = inspect_checkpoint(folder)
    assert row(report, "audio encoder").status == "not given"
    assert report.complete


def test_bad_folders(folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        inspect_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no such folder.*wav2vec2"):
        inspect_checkpoint(folder, tmp_path / "nowhere")


def test_empty_folder(tmp_path):
    report = inspect_checkpoint(tmp_path, tmp_path)
    assert {part.status for part in report.components} == {"missing"}
    assert all(str(tmp_path) in part.problem for part in report.components)
    assert not report.complete


def test_damaged_dit(folder, wav2vec2):
    path = folder / DIT
    path.write_bytes(path.read_bytes()[:-8])
    broken(inspect_checkpoint(folder, wav2vec2), "DiT", DIT, "truncated", "download")


def test_missing_config(folder, wav2vec2):
    (folder / "config.json").unlink()
    broken(inspect_checkpoint(folder, wav2vec2), "DiT", "config.json")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_layers": 3}, "missing"),
        ({"num_layers": 1}, "unexpected"),
        ({"ffn_dim": 512}, "wrong"),
        ({"context_tokens": 16}, "wrong"),
        ({"audio_window": 7}, "proj1"),
    ],
)
def test_config_and_weights_do_not_belong_together(folder, wav2vec2, change, word):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    broken(inspect_checkpoint(folder, wav2vec2), "DiT", word)


def test_missing_shard(golden_checkpoint, wav2vec2, tmp_path):
    shutil.copytree(golden_checkpoint("tiny_a_sharded"), tmp_path / "x")
    shard = sorted((tmp_path / "x").glob("*.safetensors"))[1]
    shard.unlink()
    broken(inspect_checkpoint(tmp_path / "x", wav2vec2), "DiT", shard.name, "1 of 3")


def test_damaged_vae(folder, wav2vec2):
    tensors = torch.load(folder / VAE, weights_only=True)
    del tensors["decoder.head.2.bias"]
    torch.save(tensors, folder / VAE)
    broken(inspect_checkpoint(folder, wav2vec2), "VAE", VAE, "1 missing", "decoder.head.2.bias")
    (folder / VAE).write_bytes(b"")
    broken(inspect_checkpoint(folder, wav2vec2), "VAE", VAE, "empty")


def test_audio_encoder_of_another_size(folder, golden_checkpoint):
    """A whole encoder that this DiT cannot listen to: the DiT's row says so."""
    report = inspect_checkpoint(folder, golden_checkpoint("w2v_small"))
    assert row(report, "audio encoder").status == "found"
    broken(report, "DiT", "3 x 96", "--audio-encoder")


def test_legacy_audio_encoder(folder, golden_checkpoint, tmp_path):
    """The names of old files: a prefix, a split weight norm, and heads that nobody needs."""
    audio_width(folder, 3 * 96)
    small, legacy = golden_checkpoint("w2v_small"), tmp_path / "legacy"
    legacy.mkdir()
    for config in small.glob("*.json"):
        shutil.copy(config, legacy)
    tensors = {"project_hid.weight": torch.ones(2, 2)}
    for key, tensor in load_file(small / "model.safetensors").items():
        for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
            key = key.replace(f"parametrizations.weight.{new}", old)
        tensors[f"wav2vec2.{key}"] = tensor
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in tensors
    torch.save(tensors, legacy / "pytorch_model.bin")
    report = inspect_checkpoint(folder, legacy)
    assert report.complete
    assert [file.name for file in row(report, "audio encoder").files] == ["pytorch_model.bin"]


def test_damaged_audio_encoder(folder, wav2vec2, tmp_path):
    copy = tmp_path / "audio"
    shutil.copytree(wav2vec2, copy)
    tensors = load_file(copy / "model.safetensors")
    del tensors["encoder.layers.11.attention.q_proj.bias"]
    save_file(tensors, copy / "model.safetensors")
    broken(inspect_checkpoint(folder, copy), "audio encoder", "q_proj.bias", "1 missing")
    (copy / "config.json").unlink()
    broken(inspect_checkpoint(folder, copy), "audio encoder", "config.json")


def test_encoders_for_prepare(folder, wav2vec2, golden_checkpoint):
    """Tiny ones whose widths do not fit this DiT, then with their own widths in config.json."""
    shutil.copy(golden_checkpoint("t5_tiny"), folder / T5)
    shutil.copy(golden_checkpoint("clip_tiny"), folder / CLIP)
    tokenizer = folder / "google/umt5-xxl"
    tokenizer.mkdir(parents=True)
    report = inspect_checkpoint(folder, wav2vec2)
    for name, key in (
        ("text encoder", "token_embedding.weight is [512, 64]"),
        ("tokenizer", "tokenizer.json"),
        ("image encoder", "visual.pos_embedding is [1, 257, 64]"),
    ):
        assert row(report, name).status == "broken"
        assert key in row(report, name).problem
    (tokenizer / "tokenizer.json").write_text("{}")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"text_dim": 64, "image_dim": 64}))
    report = inspect_checkpoint(folder, wav2vec2)
    for name in ("text encoder", "tokenizer", "image encoder"):
        assert row(report, name).status == "found"
    # No DiT, no widths to compare with: the encoders are whole in themselves.
    (folder / "config.json").unlink()
    report = inspect_checkpoint(folder, wav2vec2)
    assert row(report, "text encoder").status == row(report, "image encoder").status == "found"
    tensors = torch.load(folder / T5, weights_only=True)
    tensors["blocks.1.attn.q.weight"] = torch.ones(3, 3)
    torch.save(tensors, folder / T5)
    text = row(inspect_checkpoint(folder, wav2vec2), "text encoder")
    assert text.status == "broken" and "blocks.1.attn.q.weight" in text.problem
    # What the loader would miss, doctor misses too.
    tensors = torch.load(folder / CLIP, weights_only=True)
    del tensors["visual.pre_norm.bias"]
    torch.save(tensors, folder / CLIP)
    image = row(inspect_checkpoint(folder, wav2vec2), "image encoder")
    assert image.status == "broken" and "visual.pre_norm.bias" in image.problem

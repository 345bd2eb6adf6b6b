import dataclasses
import json

import pytest
import torch

from livetalk_kernels.errors import UserError
from livetalk_model.config import PRESETS, AudioEncoderConfig, DiTConfig, VAEConfig, get_preset


def test_published_config_is_the_default(facts, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(facts["dit"]["config_json_written_by_save_pretrained"]))
    assert DiTConfig.from_json(path) == DiTConfig()
    assert DiTConfig().head_dim == 128
    assert DiTConfig().audio_features == 9216


def test_keys_that_save_pretrained_leaves_out_have_defaults(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"_class_name": "WanModel", "dim": 128, "num_heads": 4}))
    config = DiTConfig.from_json(path)
    assert (config.dim, config.num_heads, config.text_dim) == (128, 4, 4096)
    assert config.patch_size == (1, 2, 2)
    path.write_text(json.dumps({"patch_size": [1, 2, 2], "text_dim": 64}))
    assert DiTConfig.from_json(path).text_dim == 64


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"dim": 130, "num_heads": 4}, "num_heads"),
        ({"dim": 12, "num_heads": 4}, "num_heads"),  # three channels a head: no pairs to rotate
        ({"dim": "5120"}, "dim"),
        ({"dim": None}, "dim"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_layers": True}, "num_layers"),
        ({"freq_dim": 255}, "freq_dim"),
        ({"in_dim": 16}, "in_dim"),
        ({"audio_window": 4}, "audio_window"),
        ({"patch_size": [2, 2, 2]}, "patch_size"),
        ({"eps": float("nan")}, "eps"),
        ({"model_type": "t2v"}, "model_type"),
        ({"norm_input_visual": False}, "norm_input_visual"),
        ({"qk_norm": False}, "qk_norm"),
    ],
)
def test_impossible_values_name_file_and_field(tmp_path, values, field):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=field) as error:
        DiTConfig.from_json(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_damaged_config_names_the_file(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        DiTConfig.from_json(path)


def test_missing_config_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"config\.json.*check the path"):
        DiTConfig.from_json(tmp_path / "config.json")


def test_configs_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VAEConfig().dim = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        DiTConfig(5120)  # type: ignore[misc]


def test_latent_statistics_are_those_of_the_golden_vae(golden, golden_checkpoint):
    """Decoding starts with conv2(z * std + mean); a 1x1 convolution can be undone."""
    trace = golden("vae_trace_dim16")
    path = golden_checkpoint("tiny_a") / "Wan2.1_VAE.pth"
    weights = torch.load(path, weights_only=True)
    weight = weights["conv2.weight"].double().reshape(16, 16)
    out = trace["decode2.conv2.call0"][0].double().reshape(16, -1)
    scaled = torch.linalg.solve(weight, out - weights["conv2.bias"].double()[:, None])
    z = trace["decode2.z"].double().reshape(16, -1)
    for channel in range(16):
        terms = torch.stack((z[channel], torch.ones_like(z[channel])), dim=1)
        std, mean = torch.linalg.lstsq(terms, scaled[channel][:, None]).solution.flatten()
        assert std.item() == pytest.approx(VAEConfig().std[channel], abs=2e-5)
        assert mean.item() == pytest.approx(VAEConfig().mean[channel], abs=2e-5)


def test_vae_refuses_other_latents():
    with pytest.raises(UserError, match="z_dim"):
        VAEConfig(z_dim=48)
    with pytest.raises(UserError, match="dim"):
        VAEConfig(dim=0)


def test_wav2vec2_config(golden_checkpoint, tmp_path):
    config = AudioEncoderConfig.from_json(golden_checkpoint("w2v_768") / "config.json")
    assert (config.layers, config.width, config.heads) == (12, 768, 12)
    assert config.conv_dim == (32,) * 7
    assert (config.ffn_dim, config.pos_conv_kernel) == (128, 16)
    path = tmp_path / "config.json"
    for values in ({"num_attention_heads": 5}, {"conv_dim": [512]}, {"conv_dim": 512}):
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match=r"config\.json"):
            AudioEncoderConfig.from_json(path)


def test_presets_are_those_of_the_design():
    assert list(PRESETS) == ["14b", "small", "mid", "tiny", "demo"]
    assert get_preset("14b").dit == DiTConfig()
    small, mid, tiny = (get_preset(name) for name in ("small", "mid", "tiny"))
    assert (small.dit.dim, small.dit.num_heads, small.dit.num_layers) == (1536, 12, 30)
    assert (small.dit.ffn_dim, small.vae.dim) == (8960, 96)
    assert (mid.dit.dim, mid.dit.head_dim, mid.dit.num_layers, mid.dit.ffn_dim) == (
        512,
        128,
        8,
        1408,
    )
    assert (mid.vae.dim, mid.size) == (96, (128, 128))
    assert (mid.audio.layers, mid.audio.width) == (12, 768)
    assert (tiny.dit.dim, tiny.dit.head_dim, tiny.dit.num_layers, tiny.dit.ffn_dim) == (
        256,
        64,
        4,
        704,
    )
    assert (tiny.vae.dim, tiny.size) == (8, (64, 64))


def test_unknown_preset_lists_the_known():
    with pytest.raises(UserError, match="14b, small, mid, tiny, demo"):
        get_preset("huge")
    with pytest.raises(UserError, match="audio"):
        dataclasses.replace(get_preset("tiny"), audio=AudioEncoderConfig())
    with pytest.raises(UserError, match="multiples of 16"):
        dataclasses.replace(get_preset("tiny"), size=(64, 70))

"""wav2vec2's network against transformers' Wav2Vec2Model, in both layouts, and its loudness meter.

The meter is held to pyloudnorm, by which the published model levels its speech.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pyloudnorm import Meter
from safetensors.torch import load_file, save_file

from livetalk_kernels.errors import UserError
from livetalk_kernels.testing.numerics import relative_l2
from livetalk_model.config import Activation, AudioEncoderConfig, get_preset
from livetalk_model.dry_run.record import AUDIO, record_audio
from livetalk_model.encoders.audio import AudioEncoder, unit_variance
from livetalk_model.encoders.loudness import LoudnessMeter
from livetalk_model.encoders.wav2vec2 import ACTIVATIONS, Wav2Vec2

RATE = 16000
LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
LAYOUTS = {"base": {}, "large": LARGE}


def noise(count: int, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(count).standard_normal(count)).astype(np.float32)


def save_folder(folder: Path, **values: Any) -> Any:
    """A wav2vec2 folder of random weights, none of which is what it is initialised with."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    shape = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
             "intermediate_size": 80, "conv_dim": [16, 24, *[32] * 5],
             "num_conv_pos_embeddings": 9, "num_conv_pos_embedding_groups": 4}  # fmt: skip
    torch.manual_seed(0)
    model = Wav2Vec2Model(Wav2Vec2Config(**(shape | values))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def assert_like_transformers(folder: Path, theirs: Any) -> None:
    """Features and the output of every layer within 1e-6."""
    encoder = AudioEncoder.from_folder(folder, device="cpu")
    values = unit_variance(noise(RATE))
    with torch.no_grad():
        features = theirs.feature_extractor(torch.from_numpy(values)[None])
        output = theirs(torch.from_numpy(values)[None], output_hidden_states=True)
        ours = encoder.hidden_states(encoder.conv_features(values).transpose(1, 2))
    assert relative_l2(encoder.conv_features(values), features) < 1e-6
    layers = torch.cat([*output.hidden_states[1:-1], output.last_hidden_state]).transpose(0, 1)
    assert ours.shape == layers.shape and ours.is_contiguous()
    for number in range(layers.shape[1]):
        assert relative_l2(ours[:, number], layers[:, number]) < 1e-6


@pytest.mark.parametrize("kernel", [9, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts(tmp_path, layout, kernel):
    shape = LAYOUTS[layout] | {"num_conv_pos_embeddings": kernel, "layer_norm_eps": 1e-3}
    assert_like_transformers(tmp_path, save_folder(tmp_path, **shape))


@pytest.mark.parametrize("name", get_args(Activation))
def test_activations(tmp_path, name):
    theirs = save_folder(tmp_path, hidden_act=name, feat_extract_activation=name)
    assert_like_transformers(tmp_path, theirs)
    assert set(get_args(Activation)) == set(ACTIVATIONS)


def test_names_before_transformers_4_31(tmp_path):
    """Magnitude and direction of the positional weight under their first names, behind a prefix."""
    theirs = save_folder(tmp_path, **LARGE)
    weights, conv = load_file(tmp_path / "model.safetensors"), "encoder.pos_conv_embed.conv."
    for number, old in enumerate("gv"):
        new = f"{conv}parametrizations.weight.original{number}"
        weights[f"{conv}weight_{old}"] = weights.pop(new)
    save_file({f"wav2vec2.{key}": value for key, value in weights.items()},
              tmp_path / "model.safetensors")  # fmt: skip
    assert_like_transformers(tmp_path, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_are_those_of_the_parameters(tmp_path, layout):
    (tmp_path / "config.json").write_text(json.dumps(LAYOUTS[layout]))
    config = AudioEncoderConfig.from_json(tmp_path / "config.json")
    with torch.device("meta"):
        network = Wav2Vec2(config)
    found = record_audio(config, "cpu").weights[AUDIO]
    assert found == 4 * sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": "gleu"}, r"hidden_act is 'gleu', not one of gelu, .*swish"),
        ({"hidden_act": ["gelu"]}, "hidden_act is"),
        ({"feat_extract_activation": None}, "feat_extract_activation is None"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm is 'batch', not one of group, layer"),
        ({"do_stable_layer_norm": 1}, "do_stable_layer_norm is 1, not true or false"),
        ({"conv_bias": "yes"}, "conv_bias is 'yes', not true or false"),
        ({"layer_norm_eps": 0}, "layer_norm_eps: must be a number between 0 and 1"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small', not a number"),
        ({"conv_dim": [], "conv_kernel": [], "conv_stride": []}, "conv_dim: has no entries"),
    ],
)
def test_impossible_configurations(tmp_path, values, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"config\.json: {message}") as caught:
        AudioEncoderConfig.from_json(path)
    assert "\n" not in str(caught.value) and "restore" in str(caught.value)


def test_random_weights_are_what_they_were():
    """Of names, shapes and bits: a digest from when transformers built the network."""
    encoder = AudioEncoder.random(get_preset("tiny").audio, seed=0, device="cpu")
    digest = hashlib.sha256()
    for name, weight in sorted(encoder._network.named_parameters()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.numpy().tobytes())
    assert digest.hexdigest().startswith("45ddd74b7ebfb7e794e063b6b9394c68")


# Loudness --------------------------------------------------------------------------------------


def measured(samples: np.ndarray, rate: int = RATE) -> tuple[float, float]:
    return LoudnessMeter(rate).measure(samples), Meter(rate).integrated_loudness(samples)


def syllables(count: int, rate: int = RATE) -> np.ndarray:
    """Noise that swells and fades: some blocks pass the gates, some do not."""
    seconds = np.arange(count) / rate
    return noise(count, 1.0) * (0.2 * np.sin(2.2 * seconds) ** 8).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [6400, 6401, 7199, 7200, 7201, 8000, 16517, 127999, 128000])
def test_loudness_is_that_of_pyloudnorm(count, dtype):
    ours, theirs = measured(syllables(count).astype(dtype))
    assert np.isfinite(theirs) and abs(ours - theirs) < 1e-9


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_loudness_at_other_rates(rate):
    ours, theirs = measured(syllables(3 * rate, rate), rate)
    assert abs(ours - theirs) < 1e-9


def test_loudness_of_a_gated_whisper():
    """Both gates cut: silence below -70 LUFS, and blocks 10 LU below the rest."""
    loud, soft = noise(2 * RATE, 0.1), noise(RATE, 0.01)
    wave = np.concatenate((np.zeros(3 * RATE, np.float32), loud, soft, noise(RATE, 1e-6)))
    ours, theirs = measured(wave)
    assert abs(ours - theirs) < 1e-9
    ungated = -0.691 + 10 * np.log10(np.mean(np.square(wave[3 * RATE :].astype(np.float64))))
    assert ours > ungated


@pytest.mark.parametrize("wave", [np.zeros(RATE, np.float32), noise(RATE, 1e-6)])
def test_silence_has_no_loudness(wave):
    ours, theirs = measured(wave)
    assert ours == theirs == -np.inf


def test_loudness_of_tones():
    """Of BS.1770: a full-scale sine of 997 Hz has -3.01 LUFS; low tones and offsets weigh less."""
    time = np.arange(4 * 48000) / 48000
    tone = np.sin(2 * np.pi * 997 * time)
    assert LoudnessMeter(48000).measure(tone) == pytest.approx(-3.01, abs=0.05)
    assert LoudnessMeter(48000).measure(np.sin(2 * np.pi * 20 * time)) < -12
    assert abs(np.subtract(*measured(tone + 0.5, 48000))) < 1e-9

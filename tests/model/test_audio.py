"""Audio path: parity with the published model stage by stage, streams, and damaged folders."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from livetalk_kernels.errors import UserError
from livetalk_model.config import AudioEncoderConfig, get_preset
from livetalk_model.encoders.audio import (
    AudioEncoder,
    AudioStream,
    audio_windows,
    interpolate,
    normalize_loudness,
    unit_variance,
)
from livetalk_model.encoders.loudness import LoudnessMeter

SMALL = AudioEncoderConfig(
    layers=2,
    width=32,
    heads=4,
    ffn_dim=48,
    conv_dim=(16,) * 7,
    pos_conv_kernel=9,
    pos_conv_groups=4,
)
METER = LoudnessMeter(16000)
WAVES = ("1s", "3s", "silence_1s", "odd_1.03s")


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise in syllables, about as loud as speech."""
    generator = np.random.default_rng(seed)
    samples = int(seconds * 16000)
    envelope = np.abs(np.sin(np.arange(samples) * 2e-4)) * 0.2
    return (generator.standard_normal(samples) * envelope).astype(np.float32)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, limit: float = 1e-4) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).norm()
    assert error <= limit * expected.double().norm()


@pytest.fixture(scope="module")
def small() -> AudioEncoder:
    return AudioEncoder.random(SMALL, seed=3, device="cpu")


def save_folder(folder: Path, **shape) -> Path:
    """A wav2vec2 folder of random weights, written by transformers."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=9,
        num_conv_pos_embedding_groups=4,
        **shape,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_folder(tmp_path / "wav2vec2")


@pytest.mark.golden
@pytest.mark.parametrize("name", ["w2v_small", "w2v_small_legacy"])
@pytest.mark.parametrize("wave", WAVES)
def test_golden_stages(golden, reference_dir, name, wave):
    tensors = golden("audio")
    encoder = AudioEncoder.from_folder(reference_dir / "ckpt_small" / name, device="cpu")
    loud = normalize_loudness(tensors[f"wave_{wave}"].numpy(), METER)
    assert_near(torch.from_numpy(loud), tensors[f"loudnorm_{wave}"], 1e-12)
    values = unit_variance(loud)
    assert_near(torch.from_numpy(values), tensors[f"input_values_{wave}"], 1e-6)
    features = encoder.conv_features(values)
    assert_near(features, tensors[f"conv_features_{wave}"])
    expected = tensors[f"interpolated_{wave}"]
    resampled = interpolate(features, expected.shape[1])
    assert_near(resampled, expected)
    hidden = tensors[f"hidden_states_{wave}"][1:].transpose(0, 1)
    assert_near(encoder.hidden_states(resampled), hidden)
    assert_near(encoder.embed(tensors[f"wave_{wave}"]), hidden)


@pytest.mark.golden
def test_golden_windows(golden, reference_dir):
    tensors = golden("audio")
    encoder = AudioEncoder.from_folder(reference_dir / "ckpt_small/w2v_small", device="cpu")
    embeddings = encoder.embed(tensors["wave_1s"])
    windows = audio_windows(embeddings, 0, len(embeddings))
    assert_near(windows[None], tensors["embedding_windows_1s"])


@pytest.mark.golden
def test_legacy_names_give_the_same_weights(reference_dir):
    wave = speech(1)
    new, old = (
        AudioEncoder.from_folder(reference_dir / "ckpt_small" / name, device="cpu")
        for name in ("w2v_small", "w2v_small_legacy")
    )
    assert torch.equal(new.embed(wave), old.embed(wave))


@pytest.mark.golden
def test_golden_12_layers_of_768(golden, golden_checkpoint):
    tensors = golden("audio")
    encoder = AudioEncoder.from_folder(golden_checkpoint("w2v_768"), device="cpu")
    assert (encoder.layers, encoder.width) == (12, 768)
    assert_near(encoder.embed(tensors["wave_1s"]), tensors["emb768_1s"])
    for wave in ("silence_1s", "odd_1.03s"):
        embeddings = encoder.embed(tensors[f"wave_{wave}"])
        assert_near(embeddings[:, [0, 5, 11]], tensors[f"emb768_{wave}"])


@pytest.mark.parametrize("samples", [6400, 16000, 16517, 31999])
@pytest.mark.parametrize("fps", [24.0, 25.0, 29.97])
def test_one_row_for_every_frame(small, samples, fps):
    embeddings = small.embed(speech(2)[:samples], fps=fps)
    assert embeddings.shape == (int(samples / 16000 * fps), 2, 32)
    assert embeddings.isfinite().all()


def test_weights_of_a_checkpoint_with_head_and_old_names(folder):
    expected = AudioEncoder.from_folder(folder, device="cpu").embed(speech(1))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {"parametrizations.weight.original0": "weight_g"}
    names["parametrizations.weight.original1"] = "weight_v"
    legacy = {"quantizer.codevectors": torch.zeros(1, 4, 2), "lm_head.weight": torch.zeros(3, 3)}
    for key, value in weights.items():
        for new, old in names.items():
            key = key.replace(new, old)
        legacy[f"wav2vec2.{key}"] = value
    torch.save(legacy, folder / "pytorch_model.bin")
    encoder = AudioEncoder.from_folder(folder, device="cpu")
    assert torch.equal(encoder.embed(speech(1)), expected)


def test_other_dtype(folder):
    wave = speech(1)
    exact = AudioEncoder.from_folder(folder, device="cpu").embed(wave)
    half = AudioEncoder.from_folder(folder, device="cpu", dtype=torch.bfloat16).embed(wave)
    assert half.dtype == torch.bfloat16
    assert_near(half.float(), exact, 0.05)


def test_random_is_deterministic(small):
    wave = speech(1)
    again = AudioEncoder.random(SMALL, seed=3, device="cpu")
    other = AudioEncoder.random(SMALL, seed=4, device="cpu")
    assert torch.equal(small.embed(wave), again.embed(wave))
    assert not torch.allclose(small.embed(wave), other.embed(wave), atol=0.1)


def test_random_of_a_preset_is_near_one():
    encoder = AudioEncoder.random(get_preset("tiny").audio, seed=0, device="cpu")
    embeddings = encoder.embed(speech(2))
    assert embeddings.shape == (50, encoder.layers, encoder.width) == (50, 4, 128)
    assert 0.3 < embeddings.std() < 3
    different = encoder.embed(speech(2, seed=1))
    assert (different - embeddings).std() > 0.01  # it hears something


def test_silence_is_finite(small):
    assert small.embed(np.zeros(16000, np.float32)).isfinite().all()


def test_loudness_does_not_matter(small):
    wave = speech(1)
    torch.testing.assert_close(small.embed(wave), small.embed(wave * 0.1), rtol=0, atol=1e-3)


def test_loudness_target():
    loud = normalize_loudness(speech(3), METER)
    assert loud.dtype == np.float64
    assert METER.measure(loud) == pytest.approx(-23, abs=1e-3)
    silence = np.zeros(16000, np.float32)
    assert normalize_loudness(silence, METER) is silence


def test_windows_repeat_the_ends():
    embeddings = torch.arange(10.0).view(10, 1, 1)
    windows = audio_windows(embeddings, 0, 10)[..., 0, 0]
    assert windows[0].tolist() == [0, 0, 0, 1, 2]
    assert windows[5].tolist() == [3, 4, 5, 6, 7]
    assert windows[9].tolist() == [7, 8, 9, 9, 9]
    assert audio_windows(embeddings, 4, 6, window=3)[..., 0, 0].tolist() == [[3, 4, 5], [4, 5, 6]]


def test_stream_is_the_window_of_silence_and_speech(small):
    wave = speech(10)
    stream = AudioStream(small, seconds=8)
    pushed = [stream.push(wave[: 3 * 16000]), stream.push(wave[3 * 16000 :])]
    padded = np.concatenate((np.zeros(5 * 16000, np.float32), wave[: 3 * 16000]))
    for windows, heard in zip(pushed, (padded, wave[-8 * 16000 :]), strict=True):
        assert windows.shape == (33, 5, 2, 32)
        torch.testing.assert_close(windows, audio_windows(small.embed(heard), 167, 200))


def test_stream_does_not_care_how_speech_is_cut(small):
    wave = speech(2.5)
    whole = AudioStream(small).push(wave)
    stream = AudioStream(small)
    for piece in np.array_split(wave, [1, 1, 700, 17921, 30000]):
        windows = stream.push(torch.from_numpy(piece))
    assert torch.equal(windows, whole)


def test_stream_longer_push_than_window(small):
    wave = speech(20)
    assert torch.equal(AudioStream(small).push(wave), AudioStream(small).push(wave[-128000:]))


def test_stream_at_another_frame_rate(small):
    assert AudioStream(small, fps=30.0).push(speech(1)).shape == (33, 5, 2, 32)
    with pytest.raises(UserError, match=r"choose at least 4\.1"):
        AudioStream(small, fps=4.0)


def test_too_short(small):
    with pytest.raises(UserError, match=r"0.30 s is too short"):
        small.embed(speech(0.3))


def test_not_mono(small):
    with pytest.raises(UserError, match="expected mono"):
        small.embed(np.zeros((2, 16000), np.float32))
    with pytest.raises(UserError, match="expected mono"):
        AudioStream(small).push(np.zeros((1, 16000), np.float32))


class Code:
    def __reduce__(self):
        return (print, ("this ran",))


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def edit_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def use_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"encoder.layer_norm.weight": Code()}, folder / "pytorch_model.bin")


NORM = "encoder.layer_norm.weight"
DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), "no such config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights found"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: is not valid JSON"),
    "other model": (lambda f: edit_config(f, model_type="bert"), "model_type is 'bert'"),
    "impossible": (
        lambda f: edit_config(f, num_attention_heads=5),
        "num_attention_heads: 5",
    ),
    "wrong type": (
        lambda f: edit_config(f, hidden_size="wide"),
        "hidden_size is .wide",
    ),
    "truncated": (lambda f: truncate(f / "model.safetensors"), "model.safetensors: truncated"),
    "missing key": (lambda f: edit_weights(f, lambda w: w.pop(NORM)), f"1 missing .{NORM}"),
    "wrong shape": (
        lambda f: edit_weights(f, lambda w: w.update({NORM: torch.zeros(31)})),
        rf"1 wrong .{NORM}: shape \[31\] instead of \[32\]",
    ),
    "fewer layers": (lambda f: edit_config(f, num_hidden_layers=1), r"16 unexpected"),
    "code": (use_code, r"pytorch_model.bin: holds code"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder(folder, capsys, damage):
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(UserError, match=message) as caught:
        AudioEncoder.from_folder(folder, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "this ran" not in capsys.readouterr().out


def test_imports_are_lazy():
    code = (
        "import sys\n"
        "import livetalk_model.color\n"
        "from livetalk_model.encoders import audio, image, text\n"
        "print(sorted({'transformers', 'pyloudnorm', 'scipy', 'ftfy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        AudioEncoder.from_folder(tmp_path / "nowhere", device="cpu")

"""Predicted memory: counts that are exact, a chunk that is measured, what splits and sizes do."""

import pytest
import torch

from livetalk_kernels import bind_ops
from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.mesh import Mesh
from livetalk_model.config import VAEConfig, get_preset
from livetalk_model.dry_run.measure import measure, weight_bytes
from livetalk_model.dry_run.memory import Model, predict
from livetalk_model.loading import DTYPES, load_pipeline
from livetalk_model.stream.chunk import StreamOptions
from livetalk_model.vae import VAE
from livetalk_model.weights.fill import random_module

LARGE = ("audio encoder", "denoise", "decode", "encode", "warm decoder")  # next to the caches too
KINDS = [
    *((dtype, precision, False) for dtype in DTYPES for precision in ("exact", "fp8")),
    *((dtype, "exact", True) for dtype in DTYPES),
]


def model_of(name: str, **given) -> Model:
    preset = get_preset(name)
    parts = {"dit": preset.dit, "vae": preset.vae, "audio": preset.audio, "size": preset.size}
    return Model(**{**parts, "device": "cuda", "dtype": torch.bfloat16, **given})


@pytest.mark.parametrize(("dtype", "precision", "fuse_bias"), KINDS)
def test_measured_on_tiny(dtype, precision, fuse_bias):
    """Weights and caches to the byte, the peak of every phase within 5 %."""
    size, options = (64, 96), StreamOptions(steps=2)
    pipeline = load_pipeline(
        preset="tiny", device="cpu", dtype=dtype, precision=precision, fuse_bias=fuse_bias
    )
    measured = measure(pipeline, size, options)
    model = {"dtype": DTYPES[dtype], "fp8": precision == "fp8", "fuse_bias": fuse_bias}
    predicted = predict(model_of("tiny", size=size, device="cpu", steps=2, **model))
    assert predicted.weights == measured.weights
    caches = sum(predicted.caches.values())
    assert caches == pytest.approx(measured.caches, rel=1e-3)
    assert predicted.phases.keys() == measured.phases.keys()
    for name, peak in predicted.phases.items():
        held = measured.caches + measured.phases[name]
        assert caches + peak.total == pytest.approx(held, rel=0.05), name
        if name in LARGE:
            assert peak.total == pytest.approx(measured.phases[name], rel=0.05), name
    assert predicted.peak.total == pytest.approx(measured.peak, rel=0.05)
    assert predicted.total == pytest.approx(measured.total, rel=0.05)
    assert measured.phases[predicted.peak_phase] == measured.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_are_counted_and_plain_ones_are_gone(dtype):
    """A VAE wide enough to be packed takes what is predicted, hardly more than its parameters."""
    config = VAEConfig(dim=32)
    with torch.device("meta"):
        vae = VAE(config, bind_ops(device="cpu", dtype=dtype), reuse=True)
    random_module(vae, seed=0, dtype=dtype, device="cpu")
    plain = sum(parameter.nbytes for parameter in vae.parameters())
    vae.prepare()
    tensors = [*vae.parameters(), *vae.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    predicted = predict(model_of("tiny", vae=config, device="cpu", dtype=dtype))
    assert predicted.weights["VAE"] == sum(storages.values()) < 1.3 * plain


def test_one_row_stands_for_all_padding_of_a_prompt():
    short, full = (predict(model_of("mid", text_rows=rows)) for rows in (20, None))
    rows = get_preset("mid").dit.text_len
    config = get_preset("mid").dit
    bytes_per_row = 2 * config.num_layers * config.dim * 2
    name = "K/V of text, image"
    assert full.caches[name] - short.caches[name] == (rows - 21) * bytes_per_row


def test_published_counts(facts):
    """14 B: as many parameters as the checkpoints have, and half of the bytes in FP8."""
    exact, fp8 = (predict(model_of("14b", fp8=fp8)) for fp8 in (False, True))
    assert exact.weights["DiT"] == 2 * facts["dit"]["total_params"]
    on_cpu = predict(model_of("14b", fp8=True, device="cpu"))
    assert 0.5 < on_cpu.weights["DiT"] / exact.weights["DiT"] < 0.52
    assert on_cpu.weights["DiT"] - fp8.weights["DiT"] > 40 * 4 * 5120**2  # on the host
    assert fp8.total < 24 * 10**9


@pytest.mark.parametrize("fp8", [False, True])
def test_a_block_is_fullest_behind_self_attention(fp8):
    """Ten tensors [12096, 5120]: x, y, h; q, k, v; q, k rotated; the result, its projection.

    In FP8 h is half as large, and so is the quantised result, which comes in addition.
    """
    tokens, config = 9 * 48 * 28, get_preset("14b").dit
    expected = 10 * tokens * config.dim * 2 + tokens * config.num_heads * 4
    denoise = predict(model_of("14b", fp8=fp8)).phases["denoise"]
    assert denoise.activations == pytest.approx(expected, rel=0.02)


def test_a_larger_picture_takes_more_and_the_weights_stay():
    small, large = (predict(model_of("14b", size=size)) for size in ((384, 224), (768, 448)))
    assert small.weights == large.weights
    for name, peak in large.phases.items():
        if name != "audio encoder":
            assert peak.total + sum(large.caches.values()) > small.phases[name].total + sum(
                small.caches.values()
            )


def test_ranks_share_tokens_and_rows_but_no_weights():
    one, eight = (
        predict(model_of("14b", mesh=Mesh(ulysses=u, ring=r))) for u, r in ((1, 1), (4, 2))
    )
    assert one.weights == eight.weights
    share = {name: eight.caches[name] / one.caches[name] for name in one.caches}
    assert share["condition tokens"] == 1 / 8 and share["RoPE tables"] == 1
    assert 1 / 8 < share["decoder state"] < 1.12 / 8  # it is kept with its halo
    assert share["K/V of text, image"] == 1
    assert 1 / 9 < share["K/V of audio"] < 1 / 2
    held = [found.phases["denoise"].total for found in (one, eight)]
    assert 1 / 8 < held[1] / held[0] < 1 / 3  # what is exchanged is in two places
    assert eight.assumed.communication > 0


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"mesh": Mesh(ulysses=3, ring=1)}, "--ulysses 3"),
        ({"mesh": Mesh(ulysses=8, ring=13)}, "--ranks 104"),
        ({"size": (100, 448)}, "--size 100x448"),
    ],
)
def test_what_cannot_run_is_refused(given, named):
    with pytest.raises(UserError, match=named):
        model_of("14b", **given)


def test_weights_are_counted_once_and_in_all_parts():
    pipeline = load_pipeline(preset="tiny", device="cpu", dtype="bf16")
    weights = weight_bytes(pipeline)
    dit = sum(p.numel() * p.element_size() for p in pipeline.dit.parameters())
    assert weights["DiT"] == dit
    assert weights.keys() == {"DiT", "VAE", "audio encoder"}

"""The references against the formulas of their contracts, written out once more another way."""

import numpy as np
import pytest
import torch
from torch import Tensor

from livetalk_kernels.ops.add_norm import add_norm
from livetalk_kernels.ops.audio_attention import audio_attention
from livetalk_kernels.ops.chunk_attention import chunk_attention
from livetalk_kernels.ops.context_attention import context_attention
from livetalk_kernels.ops.merge_lse import merge_lse
from livetalk_kernels.ops.rms_norm_rope import rms_norm_rope

ATTENTION_BACKENDS = ["reference", "sdpa"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """One head after the other, with numpy."""
    out, lse = np.zeros(q.shape), np.zeros((q.shape[0], q.shape[2], q.shape[1]))
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h].numpy() @ k[b, :, h].numpy().T / np.sqrt(q.shape[-1])
            weights = np.exp(scores)
            out[b, :, h] = weights @ v[b, :, h].numpy() / weights.sum(-1, keepdims=True)
            lse[b, h] = np.log(weights.sum(-1))
    return out, lse


def test_rms_norm_rope_rotates_pairs_of_the_normed_rows() -> None:
    B, L, H, d, offset = 2, 5, 3, 8, 4
    q, k = draw(B, L, H * d, seed=1), draw(B, L, H * d, seed=2)
    weight_q, weight_k, angle = draw(H * d, seed=3), draw(H * d, seed=4), draw(11, d // 2, seed=5)
    tables = angle.cos(), angle.sin()
    results = rms_norm_rope(
        q, k, weight_q, weight_k, *tables, num_heads=H, eps=1e-3, row_offset=offset
    )
    for x, weight, result in ((q, weight_q, results[0]), (k, weight_k, results[1])):
        assert result.shape == (B, L, H, d)
        for b in range(B):
            for token in range(L):
                row = x[b, token].numpy()
                row = row / np.sqrt((row**2).mean() + 1e-3) * weight.numpy()
                for pair in range(H * d // 2):
                    phase = angle[offset + token, pair % (d // 2)].item()
                    turned = (row[2 * pair] + 1j * row[2 * pair + 1]) * np.exp(1j * phase)
                    two = result[b, token].flatten()[2 * pair : 2 * pair + 2].tolist()
                    assert two == pytest.approx([turned.real, turned.imag])


def test_rms_norm_rope_layouts_and_shards_agree_bit_for_bit() -> None:
    B, L, H, d = 2, 7, 3, 8
    q, k, _ = draw(B, L, 3 * H * d).to(torch.bfloat16).split(H * d, dim=-1)
    weight = draw(H * d, seed=3).float()
    angle = draw(L, d // 2, seed=5).float()
    tables = angle.cos(), angle.sin()
    whole = rms_norm_rope(q, k, weight, weight, *tables, num_heads=H)
    heads = rms_norm_rope(q, k, weight, weight, *tables, num_heads=H, layout="head")
    assert heads[0].shape == (H, B, L, d)
    for token_major, head_major in zip(whole, heads, strict=True):
        assert torch.equal(token_major, head_major.permute(1, 2, 0, 3))
    shard = rms_norm_rope(q[:, 3:], k[:, 3:], weight, weight, *tables, num_heads=H, row_offset=3)
    assert torch.equal(shard[0], whole[0][:, 3:])
    with pytest.raises((AssertionError, RuntimeError), match="table"):
        rms_norm_rope(q, k, weight, weight, *tables, num_heads=H, row_offset=1)


@pytest.mark.parametrize("gated", [True, False])
def test_add_norm_is_a_sum_and_a_layer_norm(gated: bool) -> None:
    x, y, gate = draw(2, 3, 10, seed=1), draw(2, 3, 10, seed=2), draw(10, seed=3)
    weight, bias = draw(10, seed=4), draw(10, seed=5)
    x_new, h = add_norm(x, y, gate if gated else None, weight, bias, eps=0.1)
    total = x.numpy() + (gate.numpy() if gated else 1) * y.numpy()
    centred = total - total.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.1)
    assert np.allclose(x_new, total)
    assert np.allclose(h, normed * weight.numpy() + bias.numpy())


def test_add_norm_normalises_the_rounded_sum() -> None:
    x = torch.tensor([[256.0, 1.0, -3.0, 7.0]], dtype=torch.bfloat16)
    y = torch.full((1, 4), 0.75, dtype=torch.bfloat16)  # lost next to 256: bf16 has 8 bits
    one, zero = torch.ones(4), torch.zeros(4)
    x_new, h = add_norm(x, y, one, one, zero)
    assert x_new.tolist() == [[256.0, 1.75, -2.25, 7.75]]
    expected = torch.nn.functional.layer_norm(x_new.double(), (4,), eps=1e-6)
    assert torch.equal(h, expected.to(torch.bfloat16))


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
def test_chunk_attention_is_softmax_and_lse(backend: str) -> None:
    q, k, v = draw(2, 5, 3, 8, seed=1), draw(2, 9, 3, 8, seed=2), draw(2, 9, 3, 8, seed=3)
    out, lse = chunk_attention(q, k, v, backend=backend)
    expected_out, expected_lse = softmax_attention(q, k, v)
    assert np.allclose(out, expected_out)
    assert np.allclose(lse, expected_lse)
    halved, _ = chunk_attention(q, k, v, scale=0.5 * 8**-0.5, backend=backend)
    assert np.allclose(halved, softmax_attention(q / 2, k, v)[0])


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_attention_without_keys_is_neutral(backend: str, dtype: torch.dtype) -> None:
    q, none = draw(1, 4, 2, 8).to(dtype), torch.zeros(1, 0, 2, 8, dtype=dtype)
    out, lse = chunk_attention(q, none, none, backend=backend)
    assert out.dtype == dtype and lse.dtype == torch.promote_types(dtype, torch.float32)
    assert not out.any() and (lse == -torch.inf).all()
    some = chunk_attention(q, q, q, backend=backend)
    merged = merge_lse(*some, out, lse)
    assert torch.equal(merged[0], some[0]) and torch.equal(merged[1], some[1])


def test_reference_attention_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = draw(2, 5, 3, 8, seed=1), draw(2, 9, 3, 8, seed=2), draw(2, 9, 3, 8, seed=3)
    whole = chunk_attention(q, k, v, backend="reference")
    monkeypatch.setattr("livetalk_kernels.ops._attention.SCORES", 2 * 3 * 9 * 2)
    for first, second in zip(chunk_attention(q, k, v, backend="reference"), whole, strict=True):
        assert torch.allclose(first, second, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_merged_parts_are_the_whole(dtype: torch.dtype) -> None:
    q, k, v = (draw(1, 12, 2, 16, seed=seed).to(dtype) for seed in range(3))
    whole = chunk_attention(q, k, v, backend="reference")
    out, lse = chunk_attention(q, k[:, :5], v[:, :5], backend="reference")
    for part in (slice(5, 6), slice(6, 12)):
        out, lse = merge_lse(out, lse, *chunk_attention(q, k[:, part], v[:, part]))
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    assert torch.allclose(out, whole[0], rtol=tolerance, atol=tolerance)
    assert torch.allclose(lse, whole[1], rtol=1e-4 if dtype == torch.bfloat16 else tolerance)


def test_merge_lse_with_no_keys_on_both_sides_gives_no_nan() -> None:
    out, lse = torch.randn(1, 3, 2, 4), torch.full((1, 2, 3), -torch.inf)
    merged, merged_lse = merge_lse(out, lse, out, lse)
    assert not merged.any() and (merged_lse == -torch.inf).all()
    broken = lse.clone()
    broken[0, 1, 2] = torch.nan
    merged, merged_lse = merge_lse(out, broken, out, lse)
    assert merged[0, 2, 1].isnan().all() and merged_lse[0, 1, 2].isnan()
    assert int(merged.isnan().sum()) == 4


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
def test_context_attention_sums_two_softmaxes(backend: str) -> None:
    q, image, text = draw(2, 5, 3, 8, seed=1), draw(2, 9, 3, 8, seed=2), draw(2, 4, 3, 8, seed=3)
    out = context_attention(q, image, 2 * image, text, -text, backend=backend)
    expected = softmax_attention(q, image, 2 * image)[0] + softmax_attention(q, text, -text)[0]
    assert np.allclose(out, expected)


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
@pytest.mark.parametrize("batch", [1, 2])
def test_audio_attention_of_every_shard(backend: str, batch: int) -> None:
    frames, size = 3, 4
    q = draw(batch, frames * size, 2, 8, seed=1)
    k, v = draw(batch, frames, 5, 2, 8, seed=2), draw(batch, frames, 5, 2, 8, seed=3)
    expected = np.concatenate(
        [
            softmax_attention(q[:, f * size : (f + 1) * size], k[:, f], v[:, f])[0]
            for f in range(frames)
        ],
        axis=1,
    )
    for start in range(frames * size):
        for stop in range(start, frames * size + 1):
            out = audio_attention(
                q[:, start:stop],
                k,
                v,
                tokens_per_frame=size,
                token_offset=start,
                backend=backend,
            )
            assert np.allclose(out, expected[:, start:stop])
    with pytest.raises(AssertionError, match="last audio frame"):
        audio_attention(q, k, v, tokens_per_frame=size, token_offset=1, backend=backend)


def test_sdpa_does_not_copy_strided_keys() -> None:
    """Its fused kernel reads a slice of a K/V result in place."""
    kv = torch.randn(1, 64, 2, 4, 32)
    q, (k, v) = torch.randn(1, 64, 4, 32), kv.unbind(2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        chunk_attention(q, k, v, backend="sdpa")
    names = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    # The one clone gives the LSE [B, H, L] its contiguous layout.
    clones = [event.count for event in profile.key_averages() if event.key == "aten::clone"]
    assert sum(clones) <= 1

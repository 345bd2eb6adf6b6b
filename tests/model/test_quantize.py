"""FP8 linear layers and the transformer that is made of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.ops import bind_ops
from livetalk_kernels.ops.quantize import dequantize
from livetalk_kernels.precision import FP8
from livetalk_model.config import DiTConfig, get_preset
from livetalk_model.dit import DiT
from livetalk_model.loading import ModelSource, load_pipeline
from livetalk_model.quantize import Fp8FeedForward, Fp8Linear, Quantized
from livetalk_model.weights import fill as weights_module
from livetalk_model.weights.fill import load_module, open_weights, random_module

CPU32 = {"device": "cpu", "dtype": torch.float32}


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def build(config: DiTConfig, *, fp8: bool, dtype: torch.dtype = torch.float32) -> DiT:
    with torch.device("meta"):
        return DiT(config, bind_ops(device="cpu", dtype=dtype), fp8=fp8)


def filled(fp8: bool, dtype: torch.dtype = torch.float32, name: str = "tiny") -> DiT:
    dit = build(get_preset(name).dit, fp8=fp8, dtype=dtype)
    random_module(dit, seed=5, dtype=dtype, device="cpu", key_map=dit.key_map())
    return dit


@torch.inference_mode()
def flow(dit: DiT) -> Tensor:
    """One step on deterministic inputs, 72 tokens."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dit.dtype)

    config, latent = dit.config, random(1, 16, 3, 8, 12)
    windows = random(1, 9, config.audio_window, config.audio_layers, config.audio_dim)
    return dit(
        latent,
        step=dit.prepare_steps(torch.tensor([937.5]))[0],
        condition=dit.prepare_condition(random(1, 20, 3, 8, 12)),
        context=dit.prepare_context(random(20, config.text_dim), random(1, 257, config.image_dim)),
        audio=dit.prepare_audio(windows),
        norm_rope=dit.prepare_rope(dit.token_grid(latent)),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_is_the_product_of_its_quantised_operands(dtype: torch.dtype) -> None:
    ops = bind_ops(device="cpu", dtype=dtype)
    layer = Fp8Linear(80, 48, ops)
    exact = torch.randn(48, 80)
    layer.weight.data, layer.weight_scale.data = ops.quantize(exact)
    layer.bias.data = torch.randn(48).to(dtype)
    x = torch.randn(2, 7, 80).to(dtype)
    values, scale = ops.quantize(x)
    weight = dequantize(layer.weight, layer.weight_scale, torch.float64)
    expected = dequantize(values, scale, torch.float64) @ weight.T + layer.bias.double()
    out = layer(x)
    assert out.shape == (2, 7, 48) and out.dtype == dtype
    assert relative(out, expected) < (1e-6 if dtype == torch.float32 else 4e-3)
    assert torch.equal(out, layer(Quantized(values, scale)))
    assert relative(out, x.double() @ exact.T.double() + layer.bias.double()) < 0.06


def test_m_major_scales_change_no_bit() -> None:
    """They reach the second product as they are; by flag, with FP8 alone."""
    seen: list[Tensor] = []
    flows = []
    for m_major in (False, True):
        with torch.device("meta"):
            ops = bind_ops(**CPU32)
            dit = DiT(get_preset("mid").dit, ops, fp8=True, m_major_scales=m_major)
        random_module(dit, seed=5, dtype=torch.float32, device="cpu", key_map=dit.key_map())
        product = ops.fp8_gemm
        ops.fp8_gemm = lambda *given, run=product, **more: (
            seen.append(given[2]) or run(*given, **more)
        )
        flows.append(flow(dit))
        blocked = [scale for scale in seen if scale.shape[-1] > 1]
        assert len(blocked) == dit.config.num_layers
        assert all(scale.T.is_contiguous() == m_major for scale in blocked)
        seen.clear()
    assert torch.equal(*flows)
    pipeline = load_pipeline(preset="tiny", precision="fp8", device="cpu", m_major_scales=True)
    assert pipeline.dit.m_major_scales
    with pytest.raises(UserError, match="only FP8 has scales; use --precision fp8"):
        load_pipeline(preset="tiny", device="cpu", m_major_scales=True)


@pytest.mark.parametrize("hidden", [256, 704])  # of blocks of 128, and not
def test_the_feed_forward_keeps_its_hidden_activations_in_fp8(hidden: int) -> None:
    ops = bind_ops(**CPU32)
    ffn = Fp8FeedForward(64, hidden, ops)
    plain = torch.nn.Sequential(
        torch.nn.Linear(64, hidden), torch.nn.GELU("tanh"), torch.nn.Linear(hidden, 64)
    )
    for index in ("0", "2"):
        source = plain[int(index)]
        ffn[index].weight.data, ffn[index].weight_scale.data = ops.quantize(source.weight.data)
        ffn[index].bias.data = source.bias.data
    x = torch.randn(1, 9, 64)
    with torch.inference_mode():
        assert relative(ffn(x), plain(x)) < 0.06


def test_the_transformer_in_fp8_is_close_and_small() -> None:
    exact, fp8 = filled(False), filled(True)
    assert relative(flow(fp8), flow(exact)) < 0.06
    kinds = {name: parameter.dtype for name, parameter in fp8.named_parameters()}
    linears = [name for name in kinds if name.endswith(".weight_scale")]
    assert len(linears) == 13 * fp8.config.num_layers
    assert all(kinds[name.removesuffix("_scale")] == FP8 for name in linears)
    assert {kind for name, kind in kinds.items() if kind == FP8 and ".blocks." in f".{name}"}
    for part in ("patch_embedding", "text_embedding", "time_projection", "head", "img_emb"):
        assert not [name for name in kinds if name.startswith(part) and kinds[name] == FP8]
    assert flow(fp8).dtype == torch.float32


def test_off_is_exactly_off() -> None:
    assert torch.equal(flow(filled(False)), flow(filled(False)))
    assert not [p for p in filled(False).parameters() if p.dtype == FP8]


def test_loading_never_holds_the_matrices_in_another_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights come quantised out of the mapped file, piece by piece, and equal `quantize`."""
    monkeypatch.setattr(weights_module, "QUANTIZED_ROWS", 100)
    source = filled(False, torch.bfloat16)
    tensors = {
        key: source.get_parameter(slot.param)[slot.rows or slice(None)].clone()
        for key, slot in source.key_map().items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    largest = 0
    real = weights_module.quantize

    def watched(x: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        nonlocal largest
        largest = max(largest, x.shape[0])
        return real(x, **options)

    monkeypatch.setattr(weights_module, "quantize", watched)
    dit = build(get_preset("tiny").dit, fp8=True, dtype=torch.bfloat16)
    with open_weights(tmp_path / "model.safetensors") as files:
        load_module(dit, files, dtype=torch.bfloat16, device="cpu", key_map=dit.key_map())
    assert largest == 100
    layer = dit.blocks[1].self_attn.qkv
    values, scale = real(source.blocks[1].self_attn.qkv.weight.data)
    assert torch.equal(layer.weight.view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(layer.weight_scale, scale)
    assert layer.weight_scale.dtype == torch.float32
    assert layer.bias.dtype == torch.bfloat16
    with open_weights(tmp_path / "model.safetensors") as files:
        broken = build(get_preset("mid").dit, fp8=True)
        with pytest.raises(UserError, match="shape"):
            load_module(broken, files, dtype=torch.bfloat16, device="cpu", key_map=broken.key_map())


@pytest.mark.parametrize("name", ["tiny_a", "tiny_a128"])
def test_golden_checkpoints_in_fp8(
    name: str, small_golden: Callable, golden_checkpoint: Callable
) -> None:
    """Against the published fp32 outputs: a few percent, as e4m3's 3 bits of mantissa give."""
    folder = golden_checkpoint(name)
    dit = build(DiTConfig.from_json(folder / "config.json"), fp8=True)
    with open_weights(folder) as files:
        load_module(dit, files, **CPU32, key_map=dit.key_map())
    images = [small_golden(f"dit_image_{half}")["clip_fea"] for half in (0, 1)]
    local = small_golden("dit_inputs_g1")
    frames = local["audio_frames"]
    index = (torch.arange(len(frames))[:, None] + torch.arange(5) - 2).clamp(0, len(frames) - 1)
    latent = local["latent"][None]
    with torch.inference_mode():
        output = dit(
            latent,
            step=dit.prepare_steps(torch.tensor([937.5]))[0],
            condition=dit.prepare_condition(local["y"]),
            context=dit.prepare_context(
                small_golden("dit_text")["context"], torch.cat(images, dim=1)
            ),
            audio=dit.prepare_audio(frames[index][None]),
            norm_rope=dit.prepare_rope(dit.token_grid(latent)),
        )
    assert 1e-3 < relative(output, small_golden(f"dit_out_{name}_g1")["t937.5"]) < 0.05


def test_precision_is_checked() -> None:
    with pytest.raises(UserError, match="--precision fp9: unknown; use exact or fp8"):
        load_pipeline(preset="tiny", device="cpu", precision="fp9")
    with pytest.raises(UserError, match="--precision fp8: the published schedule"):
        load_pipeline(preset="tiny", device="cpu", precision="fp8", reuse=False)
    source = ModelSource.find(
        preset="tiny", checkpoint=None, audio_encoder=None, device="cpu", dtype="fp32",
        precision="fp8", backend=None, reuse=True,
    )  # fmt: skip
    assert source.load_pipeline(source.load_preparer()).dit.fp8

"""Linear layers in bf16 on every instruction set that this CPU has."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from livetalk_kernels.backends import cpu
from livetalk_model.linear import Linear, linear, take_over_linears

DTYPES = (torch.float32, torch.float64)


def test_bf16_is_summed_in_fp32_and_rounded_once(isa: str) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"), torch.inference_mode():
        layer = Linear(2048, 40)
        x = torch.randn(3, 17, 2048, generator=generator)
        exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
        assert (layer(x) - exact).norm() < 1e-6 * exact.norm()
        half = layer.bfloat16()
        result = half(x.bfloat16())
        exact = F.linear(x.bfloat16().double(), half.weight.double(), half.bias.double())
    assert result.dtype == torch.bfloat16 and result.shape == (3, 17, 40)
    error = (result.double() - exact).abs()
    assert (error <= exact.abs() * 2**-8 + 1e-4).all()
    wide = cpu.product_dtype(x.device, torch.bfloat16)
    if wide == torch.float32:
        again = linear(x.bfloat16().float(), half.weight.float(), half.bias.float())
        assert torch.equal(result, again.bfloat16())
    assert (wide == torch.float32) == (isa not in cpu.BF16_ISAS)


def test_layers_of_others_are_taken_over_with_their_parameters() -> None:
    inner = nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU())
    module = nn.ModuleDict({"first": nn.Linear(8, 6), "rest": inner})
    before = dict(module.named_parameters())
    take_over_linears(module)
    after = dict(module.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert type(module["first"]) is Linear and type(inner[0]) is Linear
    assert (inner[0].in_features, inner[0].out_features, inner[0].bias) == (6, 4, None)


def test_strided_and_compiled_products_are_pytorchs_own() -> None:
    """oneDNN's took a thousand times as long with strided rows."""
    x, weight = torch.randn(6, 8), torch.randn(4, 16)[:, :8]
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    dense = weight.contiguous()
    with torch.inference_mode():
        compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x, dense), F.linear(x, dense))


@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8), (0, 8), (8,)], ids=str)
def test_gradients(shape: tuple[int, ...]) -> None:
    given = [torch.randn(size) for size in (shape, (4, 8), (4,))]
    own, exact = ([t.to(dtype, copy=True).requires_grad_() for t in given] for dtype in DTYPES)
    for tensors, product in ((own, linear), (exact, F.linear)):
        y = product(*tensors)
        (y * torch.arange(4)).sum().backward()
    for mine, theirs in zip(own, exact, strict=True):
        assert torch.allclose(mine.grad.double(), theirs.grad, atol=1e-5)


def test_onednn_multiplies_where_mkl_holds_back(monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    wide = isa in ("avx512", "avx512_bf16", "amx")
    for vendor, slow in (("AuthenticAMD", True), ("GenuineIntel", False)):
        cpu._onednn_is_faster.cache_clear()
        monkeypatch.setattr(cpu, "cpu_vendor", lambda vendor=vendor: vendor)
        assert cpu.prefers_onednn() == (slow and wide)
        x, weight = torch.randn(3, 8), torch.randn(4, 8)
        with profile(activities=[ProfilerActivity.CPU]) as record, torch.inference_mode():
            linear(x, weight)
        names = {event.key for event in record.key_averages()}
        assert ("mkldnn::_linear_pointwise" in names) == (slow and wide)
    cpu._onednn_is_faster.cache_clear()

"""Linear layers in bf16 on every instruction set that this CPU has."""

import torch
import torch.nn.functional as F
from torch import nn

from livetalk_kernels.backends import cpu
from livetalk_model.linear import Linear, take_over_linears


def test_bf16_is_summed_in_fp32_and_rounded_once(isa: str) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"), torch.inference_mode():
        layer = Linear(2048, 40)
        x = torch.randn(3, 17, 2048, generator=generator)
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        half = layer.bfloat16()
        result = half(x.bfloat16())
        exact = F.linear(x.bfloat16().double(), half.weight.double(), half.bias.double())
    assert result.dtype == torch.bfloat16 and result.shape == (3, 17, 40)
    error = (result.double() - exact).abs()
    assert (error <= exact.abs() * 2**-8 + 1e-4).all()
    wide = cpu.product_dtype(x.device, torch.bfloat16)
    if wide == torch.float32:
        again = F.linear(x.bfloat16().float(), half.weight.float(), half.bias.float())
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

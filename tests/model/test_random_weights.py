"""Random weights of presets without a checkpoint."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from livetalk_model.weights import random_weights
from livetalk_model.weights.fill import Slot, load_module, open_weights, random_module

KEY_MAP = {
    f"{part}.{kind}": Slot(f"qkv.{kind}", slice(4 * index, 4 * index + 4))
    for index, part in enumerate("qkv")
    for kind in ("weight", "bias")
}


def randomised(seed: int = 0, **options) -> nn.ModuleDict:
    with torch.device("meta"):
        module = nn.ModuleDict({"qkv": nn.Linear(4, 12), "norm": nn.LayerNorm(4)})
    random_module(module, **({"seed": seed, "dtype": torch.float32, "device": "cpu"} | options))
    return module


def test_random_weights_depend_on_key_and_seed_only():
    first, again, other = randomised(), randomised(), randomised(seed=1)
    assert torch.equal(first["qkv"].weight, again["qkv"].weight)
    assert not torch.equal(first["qkv"].weight, other["qkv"].weight)
    half = randomised(dtype=torch.bfloat16)
    assert torch.equal(half["qkv"].weight, first["qkv"].weight.bfloat16())


def test_random_weights_of_fused_parameters_equal_the_separate_ones():
    fused = randomised(key_map=KEY_MAP)
    with torch.device("meta"):
        separate = nn.ModuleDict({part: nn.Linear(4, 4) for part in "qkv"})
    random_module(separate, seed=0, dtype=torch.float32, device="cpu")
    for index, part in enumerate("qkv"):
        rows = slice(4 * index, 4 * index + 4)
        assert torch.equal(fused["qkv"].weight[rows], separate[part].weight)
        assert torch.equal(fused["qkv"].bias[rows], separate[part].bias)


def test_random_weights_keep_activations_near_one():
    with torch.device("meta"):
        layers = [nn.Sequential(nn.Linear(512, 512), nn.LayerNorm(512)) for _ in range(6)]
        module = nn.Sequential(nn.Conv3d(16, 512, (1, 2, 2)), *layers)
    random_module(module, seed=3, dtype=torch.float32, device="cpu")
    x = torch.randn(4, 16, 2, 9, 9)
    y = module[0](x)
    assert 0.7 < y.std() < 1.4
    y = y.movedim(1, -1)
    for layer in module[1:]:
        y = layer[0](y)
        assert 0.7 < y.std() < 1.4
        y = layer[1](y)
    weight = module[1][0].weight
    assert abs(weight.mean()) < 3 * weight.std() / weight.numel() ** 0.5
    assert (module[1][1].weight - 1).abs().max() <= 0.1
    assert module[1][0].bias.abs().max() <= 0.05


def test_random_scales_of_convolution_norms():
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.empty(8, 1, 1, 1))
            self.original0 = nn.Parameter(torch.empty(1, 1, 16))

    with torch.device("meta"):
        module = Norms()
    random_module(module, seed=0, dtype=torch.float32, device="cpu")
    assert ((module.gamma - 1).abs() <= 0.1).all()
    assert ((module.original0 - 1).abs() <= 0.1).all()


def split_mix(state: int) -> int:
    """SplitMix64's output for a state that has been stepped, by numbers of any length."""
    bits = (1 << 64) - 1
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & bits
    state = (state ^ state >> 27) * 0x94D049BB133111EB & bits
    return state ^ state >> 31


def test_bytes_are_those_of_split_mix_in_pieces_of_any_size():
    start, step = 2**63 + 12345, 0x9E3779B97F4A7C15
    assert split_mix(step) == 0xE220A8397B1DCDAF  # published, for seed 0
    words = [split_mix((start + i * step) % 2**64) for i in range(1, 9)]
    known = [n - 256 * (n > 127) for word in words for n in word.to_bytes(8, "little")]
    for first, count in ((0, 64), (11, 13), (7, 1), (8, 0), (56, 8)):
        found = random_weights.random_bytes(start, first, count, torch.device("cpu"))
        assert found.tolist() == known[first : first + count]


def test_random_weights_do_not_depend_on_the_pieces(monkeypatch):
    whole = randomised()["qkv"].weight
    monkeypatch.setitem(random_weights.PIECE, "cpu", 7)
    assert torch.equal(randomised()["qkv"].weight, whole)


@pytest.mark.gpu
def test_random_weights_are_the_same_on_a_gpu():
    here, there = randomised(), randomised(device="cuda")
    for name, value in here.state_dict().items():
        assert torch.equal(there.state_dict()[name].cpu(), value)


def test_random_weights_stay_the_same_from_release_to_release():
    weight = randomised()["qkv"].weight
    known = [0.85587662, -0.76792097, -0.65290195]
    assert weight.flatten()[:3].tolist() == pytest.approx(known, abs=1e-6)


def test_saved_random_weights_load_again(tmp_path):
    module, again = randomised(), randomised(seed=1)
    save_file(module.state_dict(), tmp_path / "x.safetensors")
    with open_weights(tmp_path / "x.safetensors") as files:
        load_module(again, files, dtype=torch.float32, device="cpu")
    assert torch.equal(again["qkv"].weight, module["qkv"].weight)

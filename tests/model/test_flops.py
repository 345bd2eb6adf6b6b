"""FLOPs of the dry run against the published counts and against PyTorch's counter of a run."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_model import linear
from livetalk_model.config import DiTConfig, get_preset
from livetalk_model.dit import DiT
from livetalk_model.dry_run.work import dit_flops
from livetalk_model.weights.fill import random_module


def test_published_counts(facts):
    published = facts["flops"]["768x448"]
    flops = dit_flops(get_preset("14b").dit, (9, 48, 28))
    blocks = published["per_block"]
    per_step = published["per_step_total"] - 40 * published["step_invariant_per_block"]
    edge = flops.step - per_step  # patch embedding and head, which the facts leave out
    assert 0 <= edge < 0.002 * flops.step
    kv = 40 * (blocks["cross_kv_text_img"] + blocks["audio_kv"])
    assert kv < flops.chunk + flops.session < 1.05 * kv


def test_counted(monkeypatch):
    monkeypatch.setattr(linear, "prefers_onednn", lambda: False)  # PyTorch counts its own products
    config = DiTConfig(
        dim=64, ffn_dim=96, num_heads=2, num_layers=2, intermediate_dim=8, output_dim=16,
        audio_layers=2, audio_dim=8, text_dim=32, image_dim=48, text_len=20, image_len=10,
    )  # fmt: skip
    ops = bind_ops(KernelConfig.parse(["reference"]), device="cpu", dtype=torch.float32)
    with torch.device("meta"):
        dit = DiT(config, ops)
    random_module(dit, seed=0, dtype=torch.float32, device="cpu", key_map=dit.key_map())
    size = (3, 8, 6)
    grid = dit.token_grid(size)
    counted = {}

    def count(name, run):
        with FlopCounterMode(display=False) as counter:
            out = run()
        counted[name] = counter.get_total_flops()
        return out

    audio = count(
        "chunk",
        lambda: dit.prepare_audio(torch.randn(1, 9, 5, 2, 8), size=grid[1:]),
    )
    condition = count("patch", lambda: dit.prepare_condition(torch.randn(1, 20, *size)))
    context = count(
        "context", lambda: dit.prepare_context(torch.randn(20, 32), torch.randn(1, 10, 48))
    )
    steps = count("schedule", lambda: dit.prepare_steps(torch.tensor([500.0])))
    count(
        "step",
        lambda: dit(
            torch.randn(1, 16, *size),
            step=steps[0],
            condition=condition,
            context=context,
            audio=audio,
            norm_rope=dit.prepare_rope(grid),
        ),
    )
    flops = dit_flops(config, grid)
    assert counted["step"] == flops.step
    assert counted["chunk"] == flops.chunk
    assert counted["context"] + counted["patch"] + counted["schedule"] == flops.session

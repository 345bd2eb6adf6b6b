"""Times: the hardware table, tiles, overlap, traffic, and what more GPUs do."""

from dataclasses import replace
from itertools import pairwise

import pytest
from plan_samples import RATES

from livetalk_kernels.errors import UserError
from livetalk_kernels.gpus import (
    BEST,
    ELSEWHERE,
    GPUS,
    SHEET,
    find_gpu,
    get_gpu,
)
from livetalk_kernels.runtime.mesh import Grid, Mesh
from livetalk_kernels.runtime.slices import Slices
from livetalk_kernels.runtime.timed_comm import COMMUNICATION
from livetalk_kernels.spec import ATTENTION, CONVOLUTIONS, CROSS, LINEARS, NORMS
from livetalk_model.config import get_preset
from livetalk_model.dry_run.record import AUDIO, DECODE, DENOISE, ENCODE, WARM
from livetalk_model.plan.dit_work import Share, step_work
from livetalk_model.plan.forecast import (
    Job,
    forecast,
    step_seconds,
    vae_seconds,
    vae_slice,
)
from livetalk_model.plan.layout import Layout, exchanged, head_groups, ring_seconds
from livetalk_model.plan.machine import (
    Costs,
    CpuMachine,
    GpuMachine,
    Shares,
    attention_share,
    product_share,
)
from livetalk_model.plan.systems import Schedule
from livetalk_model.plan.vae_work import vae_messages
from livetalk_model.plan.work import GAPS, Attention, Product, Work

SHARES = Shares(matmul=0.9, attention=0.9, convolution=0.3, memory=0.7, link=0.7)
PRESET = get_preset("14b")
JOB = Job.of(PRESET, (768, 448))
TILED = Schedule(once=False, fused_rope=False, overlap=False, tiles=True, pageable=True)


def layout(ulysses=1, ring=1, nodes=1, grid=None) -> Layout:
    world = ulysses * ring
    return Layout(
        mesh=Mesh(ulysses=ulysses, ring=ring),
        grid=grid or Grid.choose(world, JOB.latent),
        nodes=nodes,
    )


def machine(name="h800", **given) -> GpuMachine:
    return GpuMachine(gpu=GPUS[name], shares=SHARES, **given)


# Hardware ---------------------------------------------------------------------------------


def test_every_figure_has_a_source():
    assert {"a100", "h100", "h800", "h20", "h200", "b200", "l40s", "rtx4090"} < set(GPUS)
    for gpu in GPUS.values():
        for name, quantity in gpu.quantities().items():
            assert quantity.value > 0 and len(quantity.source) > 10, (gpu.name, name)
            assert "//" not in quantity.source
        assert BEST in gpu.attention
        for name in ("memory", "bandwidth", "bf16", "nvlink"):
            assert gpu.quantities()[name].kind == SHEET
        assert gpu.matmul.value < gpu.bf16.value
    assert GPUS["h200"].matmul.kind == ELSEWHERE


def test_what_sets_the_variants_apart():
    h100, h800, h20, a100 = (GPUS[name] for name in ("h100", "h800", "h20", "a100"))
    assert h800.nvlink.value == 200e9 and h100.nvlink.value == 450e9  # one way
    assert h800.fp64.value == 1e12 and h800.bf16 == h100.bf16
    assert h20.bf16.value == 148e12 and h20.fp8.value == 296e12
    assert a100.fp8 is None and a100.matmul_fp8 is None


def test_names():
    assert get_gpu("H800") is GPUS["h800"]
    with pytest.raises(UserError, match=r"a100, h100, h800, h20, h200, b200, .*, cpu"):
        get_gpu("h900", besides=["cpu"])
    assert find_gpu("NVIDIA H200") is GPUS["h200"]
    assert find_gpu("NVIDIA A100-SXM4-80GB") is GPUS["a100"]
    assert find_gpu("NVIDIA H100 80GB HBM3") is GPUS["h100"]
    assert find_gpu("NVIDIA GeForce RTX 4090") is GPUS["rtx4090"]
    assert find_gpu("NVIDIA L40S") is GPUS["l40s"]
    assert find_gpu("NVIDIA GeForce RTX 3090") is None


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA H200 NVL",
        "NVIDIA A100 80GB PCIe",
        "NVIDIA A100-PCIE-40GB",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA H20-3e",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    ],
)
def test_other_forms_of_a_gpu_are_not_taken_for_it(name):
    assert find_gpu(name) is None


# Machine ----------------------------------------------------------------------------------


def test_tiles_that_do_not_fill_the_chip():
    full = Product(rows=128 * 132, columns=256 * 10, depth=64)
    assert product_share(full, 132) == 1
    assert product_share(Product(rows=64, columns=5120, depth=64), 132) < 0.5
    # 12 x 20 tiles of 128 x 256 on 132 multiprocessors take two turns
    assert product_share(Product(rows=1536, columns=5120, depth=64), 132) == pytest.approx(
        240 / 264
    )
    assert attention_share(Attention(queries=128, keys=9, heads=132, width=8), 132) == 1
    assert attention_share(Attention(queries=128, keys=9, heads=133, width=8), 132) < 0.51


def test_what_bounds_a_product():
    gpu = machine()
    large = Product(rows=12096, columns=5120, depth=5120)
    thin = Product(rows=1, columns=256 * 132, depth=5120)
    rate = 790e12 * 0.9 * product_share(large, 132)
    assert gpu.seconds(Work(products=(large,))) == pytest.approx(large.flops / rate)
    bandwidth = 3.35e12 * 0.7
    assert gpu.seconds(Work(products=(thin,))) == pytest.approx(thin.bytes / bandwidth)
    half = gpu.seconds(Work(products=(replace(large, fp8=True),)))
    assert half == pytest.approx(gpu.seconds(Work(products=(large,))) * 790 / 1500)


def test_launches_cost_where_they_are_slower():
    gpu = machine()
    assert gpu.gaps(100, busy=1.0) == 0
    assert gpu.gaps(100, busy=1e-4) == pytest.approx(100 * Costs().launch - 1e-4)
    assert gpu.gaps(1000, busy=1e-4, graphs=True) < gpu.gaps(1000, busy=1e-4)


def test_links():
    gpu = machine()
    near = gpu.transfer(1e9, 0)
    assert near == pytest.approx(1e9 / (200e9 * 0.7))
    assert gpu.transfer(1e9, 0, far=1.0) == pytest.approx(1e9 / (50e9 * 0.7))
    # both links at once: the slower part counts
    assert gpu.transfer(1e9, 0, far=0.5) == pytest.approx(0.5e9 / (50e9 * 0.7))
    assert gpu.transfer(0, 3) == pytest.approx(3 * Costs().latency)


# Overlap ----------------------------------------------------------------------------------


def test_one_group_hides_nothing():
    assert exchanged([3.0], [10.0], [1.0]) == 14


def test_two_groups_hide_what_is_between():
    # 3 arrives; while the first is attended to (5), the second arrives and the first returns
    assert exchanged([3.0, 3.0], [5.0, 5.0], [1.0, 1.0]) == 3 + 5 + 5 + 1
    # a slow link: everything but the last attention is exposed
    assert exchanged([10.0, 10.0], [1.0, 1.0], [4.0, 4.0]) == 10 + 10 + 4 + 4
    # never better than the longer of both
    for send, attend, back in ((2.0, 7.0, 1.0), (5.0, 5.0, 5.0)):
        time = exchanged([send] * 2, [attend] * 2, [back] * 2)
        assert max(2 * (send + back), 2 * attend) <= time <= 2 * (send + attend + back)


def test_the_ring_sends_during_attention():
    assert ring_seconds(5.0, 3.0, 4) == 20  # hidden
    assert ring_seconds(3.0, 5.0, 4) == 3 + 3 * 5
    assert ring_seconds(3.0, 5.0, 1) == 3


def test_groups_of_heads_as_in_the_runtime():
    assert head_groups(Mesh(ulysses=8, ring=1), 40, 5) == [3, 2]
    assert head_groups(Mesh(ulysses=4, ring=2), 40, 10) == [10]  # one communicator at a time
    assert head_groups(Mesh(ulysses=20, ring=1), 40, 2) == [2]  # too few heads
    assert head_groups(Mesh(ulysses=1, ring=1), 40, 40) == [40]


def test_a_fast_link_hides_the_ring():
    slow = step_seconds(JOB, layout(ring=8), machine("h800"))
    fast = step_seconds(JOB, layout(ring=8), machine("h100"))
    assert slow[ATTENTION] == fast[ATTENTION]
    assert slow[COMMUNICATION] > 2 * fast[COMMUNICATION]


def test_what_runs_concurrently_is_free_only_in_waits():
    one = forecast(JOB, layout(), machine())
    assert set(one.beside) == {AUDIO, WARM}
    busy = sum(one.beside.values()) - Costs().loudness
    assert one.added == pytest.approx(busy - one.stages[DENOISE][GAPS])
    eight = forecast(JOB, layout(ulysses=8), machine())
    assert set(eight.beside) == {AUDIO} and WARM in eight.stages  # communicates, so inline
    assert eight.stages[DENOISE][COMMUNICATION] > eight.beside[AUDIO]
    assert eight.added == 0
    total = sum(sum(parts.values()) for parts in eight.stages.values())
    assert eight.chunk == pytest.approx(total)
    assert eight.fps == pytest.approx(28 / eight.chunk)
    assert eight.real_time == pytest.approx(1.12 / eight.chunk)


def test_the_published_system_overlaps_nothing():
    found = forecast(replace(JOB, schedule=TILED), layout(ulysses=8), machine())
    assert not found.beside and AUDIO in found.stages and WARM not in found.stages
    ours = forecast(JOB, layout(ulysses=8), machine())
    assert found.chunk > 1.15 * ours.chunk
    assert found.stages[DENOISE][LINEARS] > ours.stages[DENOISE][LINEARS]
    assert found.startup > found.chunk * 0.9  # no frame leaves before all are decoded
    assert ours.startup < ours.chunk + 0.05


# Who is where -----------------------------------------------------------------------------


def test_what_crosses_nodes():
    assert layout(8, 2, nodes=2).far_heads == 0 and layout(8, 2, nodes=2).far_ring == 1
    assert layout(16, 1, nodes=2).far_heads == pytest.approx(8 / 15)
    assert layout(8, 1).far_all == 0 and layout(8, 2, nodes=2).far_all == pytest.approx(8 / 15)
    one, two = (step_seconds(JOB, layout(2, 8, nodes=n), machine()) for n in (1, 2))
    assert two[COMMUNICATION] > one[COMMUNICATION]
    with pytest.raises(UserError, match="--nodes 3"):
        layout(8, nodes=3)


def test_traffic_of_the_sliced_vae_is_that_of_the_runtime_s_table():
    slices = Slices(grid=Grid(rows=4, columns=2), size=(96, 56))
    decode, warm, encode = (
        vae_messages(PRESET.vae, name, slices, itemsize=2) for name in (DECODE, WARM, ENCODE)
    )
    assert decode["halo"] / 7e6 == pytest.approx(9.5, abs=0.05)
    assert decode["gather"] / 7e6 == pytest.approx(7.2, abs=0.05)
    assert warm["halo"] / 1e6 == pytest.approx(12.3, abs=0.05)
    assert encode["halo"] / 1e6 == pytest.approx(8.1, abs=0.05)


def test_tiles_of_the_published_vae():
    job = replace(JOB, schedule=TILED)
    eight = layout(ulysses=8)
    assert vae_slice(job, eight, 2) == (28, 32) and vae_slice(job, eight, 1) == (26, 30)
    assert vae_slice(JOB, eight, 2) == (24, 28)
    theirs, ours = (vae_seconds(j, eight, machine(), DECODE) for j in (job, JOB))
    assert theirs[CONVOLUTIONS] > 1.3 * ours[CONVOLUTIONS]


# More GPUs --------------------------------------------------------------------------------


@pytest.mark.parametrize("fp8", [False, True])
def test_more_ranks_never_compute_longer(fp8):
    job = replace(JOB, fp8=fp8)
    meshes = [layout(u, r) for u, r in ((1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (8, 4))]
    steps = [step_seconds(job, mesh, machine("h200")) for mesh in meshes]
    for before, after in pairwise(steps):
        for part in (LINEARS, CROSS, NORMS, ATTENTION):
            assert after[part] < before[part]
    for name in (DECODE, ENCODE, WARM):
        times = [vae_seconds(job, mesh, machine("h200"), name)[CONVOLUTIONS] for mesh in meshes]
        assert times == sorted(times, reverse=True)


def test_better_hardware_is_faster():
    order = ["h20", "a100", "h800", "h100", "h200", "b200"]
    times = [forecast(JOB, layout(ulysses=8), machine(name)).chunk for name in order]
    assert times == sorted(times, reverse=True)


def test_larger_pictures_and_more_steps_take_longer():
    small = forecast(Job.of(PRESET, (720, 416)), layout(ulysses=8), machine())
    large = forecast(JOB, layout(ulysses=8), machine())
    eight = forecast(replace(JOB, steps=8), layout(ulysses=8), machine())
    assert small.chunk < large.chunk < eight.chunk
    assert eight.stage(DENOISE) == pytest.approx(2 * large.stage(DENOISE))


def test_the_bottleneck():
    name, share = forecast(JOB, layout(), machine()).bottleneck
    assert name == "denoise: linears" and 0.3 < share < 0.6
    name, _ = forecast(JOB, layout(ring=16, nodes=2), machine()).bottleneck
    assert name == "denoise: communication"


def test_graphs_help_where_launches_are_slow():
    tiny = get_preset("tiny")
    plain, replayed = (
        forecast(Job.of(tiny, graphs=flag), layout(), machine("h200")) for flag in (False, True)
    )
    assert plain.stages[DENOISE][GAPS] > 0
    assert replayed.stages[DENOISE][GAPS] < plain.stages[DENOISE][GAPS]


def test_fused_biases_spare_passes_on_a_gpu_alone():
    """At most as many as their layer names, 4 of 24; on a CPU a bias takes no pass."""
    job = replace(JOB, schedule=Schedule(fuse_bias=True))
    for gpu in ("h800", "h200"):
        plain, fused = (forecast(given, layout(), machine(gpu)) for given in (JOB, job))
        for stage in (DECODE, ENCODE, WARM):
            before, after = ({**found.stages, **found.beside}[stage] for found in (plain, fused))
            before, after = (sum(t.values()) if isinstance(t, dict) else t for t in (before, after))
            assert 0.8 < after / before < 0.97, stage
        assert fused.startup < plain.startup
    cpu = CpuMachine(rates=RATES)
    plain, fused = (forecast(given, layout(), cpu) for given in (JOB, job))
    assert fused.chunk == pytest.approx(plain.chunk, rel=1e-3)


def test_what_was_measured_replaces_the_table():
    quantity = replace(GPUS["h800"].matmul, value=395e12)
    slow = machine(measured={"matmul": quantity})
    share = Share.of(Mesh(ulysses=1, ring=1), JOB.tokens, 40)
    parts = step_work(PRESET.dit, JOB.token_grid, share, Schedule(), itemsize=2)
    both = [gpu.seconds(parts[LINEARS]) for gpu in (machine(), slow)]
    assert both[1] == pytest.approx(2 * both[0], rel=0.01)

"""Amounts of work: FLOPs against PyTorch's counter, parameters against the checkpoints."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.runtime.mesh import Mesh, shares
from livetalk_kernels.spec import ATTENTION, CONVOLUTIONS, CROSS, LINEARS, NORMS
from livetalk_model.config import MOTION_FRAMES, MOTION_LATENTS, get_preset
from livetalk_model.dit import DiT
from livetalk_model.dry_run.memory import Model, predict
from livetalk_model.dry_run.record import DECODE, ENCODE, WARM, record_transformer
from livetalk_model.dry_run.work import dit_flops, vae_flops
from livetalk_model.plan.dit_work import Share, audio_work, session_work, step_work
from livetalk_model.plan.figures import WAN_FORWARD_TFLOP, wan_job
from livetalk_model.plan.forecast import Job
from livetalk_model.plan.parameters import parameters
from livetalk_model.plan.systems import Schedule
from livetalk_model.plan.vae_work import FIRST, colour_work, vae_stage
from livetalk_model.plan.work import GAPS, Work, join, total
from livetalk_model.vae import VAE, DecoderCache

PRESET = get_preset("14b")
GRID = (9, 48, 28)  # tokens at 768 x 448
TOKENS = 9 * 48 * 28
LATENT = (96, 56)
ALONE = Mesh(ulysses=1, ring=1)
PUBLISHED = Schedule(once=False, fused_rope=False)


def meta(*shape):
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


def reference_ops():
    return bind_ops(KernelConfig.parse(["reference"]), device="meta", dtype=torch.bfloat16)


def on_meta(make):
    with torch.device("meta"):
        module = make()
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return module


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return counter.get_total_flops()


OURS = Schedule()


def step_flops(schedule=OURS, mesh=ALONE, **given) -> float:
    share = Share.of(mesh, TOKENS, PRESET.dit.num_heads)
    parts = step_work(PRESET.dit, GRID, share, schedule, itemsize=2, **given)
    return total(parts.values()).flops


def test_a_14b_step_is_what_pytorch_counts():
    dit = on_meta(lambda: DiT(PRESET.dit, reference_ops()))
    latent = (9, *LATENT)
    with torch.inference_mode():
        given = {
            "step": dit.prepare_steps(torch.empty(1, device="meta"))[0],
            "condition": dit.prepare_condition(meta(1, 20, *latent)),
            "context": dit.prepare_context(meta(512, 4096), meta(1, 257, 1280)),
            "audio": dit.prepare_audio(meta(1, 33, 5, 12, 768)),
            "norm_rope": dit.prepare_rope(GRID),
        }
    found = counted(lambda: dit(meta(1, 16, *latent), **given))
    assert step_flops() == pytest.approx(found, rel=0.01)
    assert found == pytest.approx(468e12, rel=0.01)


@pytest.mark.parametrize("reuse", [True, False])
def test_decode_and_encode_are_what_pytorch_counts_on_the_reference(reuse):
    """It multiplies zero frames, too, which what runs leaves out."""
    vae = on_meta(lambda: VAE(PRESET.vae, reference_ops(), reuse=reuse))
    vae.prepare()
    state = DecoderCache()
    z = meta(1, 16, 9, *LATENT)
    first = 0
    if reuse:
        first = MOTION_LATENTS
        found = counted(lambda: vae.warm(z[:, :, :first], state))
        assert planned(WARM, reuse, dense=True) == pytest.approx(found, rel=0.01)

    def decode():
        for index in range(first, 9):
            vae.decode_step(z[:, :, index : index + 1], state)

    assert planned(DECODE, reuse, dense=True) == pytest.approx(counted(decode), rel=0.01)
    video = meta(1, 3, MOTION_FRAMES, 768, 448)
    found = counted(lambda: vae.encode(video))
    assert planned(ENCODE, reuse, dense=True) == pytest.approx(found, rel=0.01)


def planned(name, reuse, rows=96, columns=56, **given) -> float:
    parts = vae_stage(PRESET.vae, name, reuse=reuse).work(rows, columns, itemsize=2, **given)
    return total(parts.values()).flops


@pytest.mark.parametrize("size", [(96, 56), (13, 7)])
@pytest.mark.parametrize("reuse", [True, False])
def test_a_picture_of_any_size_is_had_from_one(size, reuse):
    found = vae_flops(PRESET.vae, (8 * size[0], 8 * size[1]), reuse=reuse)
    decode = found["decode"] + (0 if reuse else found["warm decoder"])
    assert planned(ENCODE, reuse, *size) == pytest.approx(found["encode"], rel=1e-12)
    assert planned(DECODE, reuse, *size) == pytest.approx(decode, rel=1e-12)
    if reuse:
        assert planned(WARM, reuse, *size) == pytest.approx(found["warm decoder"], rel=1e-12)
        # warming one latent after another differs from warming two by the last block alone
        first = planned(FIRST, reuse, *size) - found["latent"]
        assert 0.5 * found["warm decoder"] < first < found["warm decoder"]


def test_systems_that_do_it_again():
    flops = dit_flops(PRESET.dit, GRID)
    assert step_flops() == pytest.approx(flops.step, rel=1e-12)
    assert audio_work(PRESET.dit, GRID, 9, itemsize=2).flops == flops.chunk
    assert session_work(PRESET.dit, GRID, TOKENS, itemsize=2).flops == flops.session
    again = flops.chunk + session_work(PRESET.dit, GRID, 0, itemsize=2).flops
    assert step_flops(PUBLISHED) == pytest.approx(flops.step + again, rel=1e-9)


def test_a_forward_of_wan():
    job = wan_job()
    share = Share.of(ALONE, job.tokens, 40)
    parts = step_work(job.dit, job.token_grid, share, job.schedule, itemsize=2)
    assert job.tokens == 32760
    assert total(parts.values()).flops / 1e12 == pytest.approx(WAN_FORWARD_TFLOP, rel=0.01)


@pytest.mark.parametrize("mesh", [Mesh(ulysses=8, ring=1), Mesh(ulysses=2, ring=4)])
def test_ranks_share_the_step(mesh):
    found = record_transformer(PRESET.dit, GRID, device="cuda", dtype=torch.bfloat16, mesh=mesh)
    assert found.phases["denoise"].flops == pytest.approx(step_flops(mesh=mesh), rel=1e-4)
    assert step_flops(mesh=mesh) == pytest.approx(step_flops() / 8, rel=1e-9)
    repeated_flops = step_flops(PUBLISHED) - step_flops()
    here = step_flops(PUBLISHED, mesh=mesh) - step_flops(mesh=mesh)
    assert here == pytest.approx(repeated_flops, rel=1e-9)  # whole on every rank


def test_uneven_shares_are_the_largest():
    share = Share.of(Mesh(ulysses=3, ring=1), 100, 40)
    assert (share.tokens, share.heads, share.block) == (34, 14, 100)
    assert share.tokens == shares(100, 3)[0]


def test_fp8_halves_what_is_read():
    share = Share.of(ALONE, TOKENS, 40)
    exact, fp8 = (
        step_work(PRESET.dit, GRID, share, Schedule(), itemsize=2, fp8=flag)
        for flag in (False, True)
    )
    assert total(exact.values()).flops == total(fp8.values()).flops
    sizes = [sum(product.bytes for product in parts[LINEARS].products) for parts in (exact, fp8)]
    assert sizes[1] < 0.8 * sizes[0]
    assert exact["activations"].bytes > 0 == fp8["activations"].bytes  # GELU is in the product


def test_rope_in_double_precision():
    share = Share.of(ALONE, TOKENS, 40)
    ours, theirs = (
        step_work(PRESET.dit, GRID, share, schedule, itemsize=2)[NORMS]
        for schedule in (Schedule(), PUBLISHED)
    )
    elements = 40 * 2 * TOKENS * 5120
    assert theirs.bytes - ours.bytes == 36 * elements
    assert ours.fp64 == 0 and theirs.fp64 == 7 * elements


def test_slices_of_the_vae_make_up_the_whole():
    whole = vae_stage(PRESET.vae, DECODE, reuse=True).work(96, 56, itemsize=2)
    piece = vae_stage(PRESET.vae, DECODE, reuse=True).work(24, 28, keys=96 * 56, itemsize=2)
    assert 8 * piece[ATTENTION].flops == pytest.approx(whole[ATTENTION].flops, rel=1e-9)
    ratio = 8 * piece[CONVOLUTIONS].conv_flops / whole[CONVOLUTIONS].conv_flops
    assert 1 < ratio < 1.03  # the border of folded upsamplings


@pytest.mark.parametrize("name", [DECODE, ENCODE, WARM])
def test_the_attention_of_the_vae_is_the_op_alone(name):
    """A profile has the products around it in the gaps, as they are no op."""
    stage = vae_stage(PRESET.vae, name, reuse=True)
    parts = stage.work(24, 28, keys=LATENT[0] * LATENT[1], itemsize=2)
    pixels, width = 24 * 28, 384
    op = 4 * stage.frames * pixels * LATENT[0] * LATENT[1] * width
    assert parts[ATTENTION].flops == pytest.approx(op, rel=1e-12)
    around = 2 * stage.frames * pixels * width * 4 * width  # q, k, v and the projection
    assert parts[GAPS].flops == pytest.approx(around, rel=1e-9)


@pytest.mark.parametrize(("name", "latents"), [(DECODE, 7), (ENCODE, 2)])
def test_fused_biases_are_the_passes_that_their_layer_names(name, latents):
    """`ResidualBlock`: of a block's 24 units 4 are spared, 2 with a shortcut, and 3 are a sum."""
    plain, fused = (
        vae_stage(PRESET.vae, name, reuse=True, fuse_bias=flag).work(*LATENT, itemsize=2)
        for flag in (False, True)
    )
    blocks = {DECODE: 14, ENCODE: 10}[name]
    sums = plain[GAPS].bytes - fused[GAPS].bytes
    assert fused[NORMS].bytes - plain[NORMS].bytes == pytest.approx(sums, rel=1e-4)
    for part, change in ((NORMS, 1), (GAPS, -1), (CONVOLUTIONS, 0)):
        assert fused[part].calls - plain[part].calls == change * blocks * latents
    assert plain[CONVOLUTIONS].spared_bytes == 0
    assert 4 / 3 < fused[CONVOLUTIONS].spared_bytes / sums < 1.1 * 4 / 3
    assert fused[CONVOLUTIONS].conv_flops == plain[CONVOLUTIONS].conv_flops


def test_colour_counts_passes_over_the_frames():
    parts = colour_work(PRESET.vae, 1000, itemsize=2)
    double = colour_work(PRESET.vae, 2000, itemsize=2)
    for name in ("colour", "to host"):
        assert 28 * 3 * 1000 * 4 < parts[name]["all"].bytes < 200 * 28 * 3 * 1000 * 4
        grown = double[name]["all"].bytes / parts[name]["all"].bytes
        assert grown == pytest.approx(2, rel=0.01)


def test_the_published_schedule_warms_nothing():
    assert vae_stage(PRESET.vae, WARM, reuse=False).work(96, 56, itemsize=2) == {}


def test_parameters_are_those_of_the_checkpoints(facts):
    found = parameters(PRESET.dit, PRESET.vae, PRESET.audio)
    names = {
        "DiT": "dit",
        "VAE": "vae",
        "audio encoder": "wav2vec2_base",
        "text encoder": "t5_umt5_xxl_encoder",
        "image encoder": "clip_xlm_roberta_vit_h_14",
    }
    assert {name: part.count for name, part in found.items()} == {
        name: facts[key]["total_params"] for name, key in names.items()
    }
    everything = sum(facts[key]["total_params"] for key in names.values())
    assert sum(part.count for part in found.values()) == everything


def test_resident_parameters_are_what_memory_holds():
    found = parameters(PRESET.dit, PRESET.vae, PRESET.audio)
    weights = predict(
        Model(
            dit=PRESET.dit,
            vae=PRESET.vae,
            audio=PRESET.audio,
            size=(768, 448),
            device="cuda",
            dtype=torch.bfloat16,
        )
    ).weights
    assert weights["DiT"] == 2 * found["DiT"].resident
    assert weights["audio encoder"] == 4 * found["audio encoder"].resident
    # folded upsampling and statistics come on top
    assert weights["VAE"] == pytest.approx(2 * found["VAE"].resident, rel=0.03)
    assert found["text encoder"].resident == found["image encoder"].resident == 0


def test_work_adds_up():
    share = Share.of(ALONE, TOKENS, 40)
    parts = step_work(PRESET.dit, GRID, share, Schedule(), itemsize=2)
    once, twice = (total(stage.values()) for stage in (parts, join(parts, parts)))
    assert twice.flops == 2 * once.flops
    assert twice.bytes == pytest.approx(2 * once.bytes)
    assert total([]) == Work()
    assert parts[CROSS].flops < 0.1 * parts[ATTENTION].flops


def test_a_job_refuses_odd_sizes():
    with pytest.raises(Exception, match="16"):
        Job.of(PRESET, (770, 448))

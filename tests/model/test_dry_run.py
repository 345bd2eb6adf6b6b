"""The dry run against the twins that it replaces: FLOPs and messages exactly, memory within 2 %."""

import pytest
import torch

from livetalk_kernels.runtime.mesh import Grid, Mesh
from livetalk_kernels.runtime.sequence_parallel import volume
from livetalk_kernels.runtime.slices import Slices
from livetalk_model import memory
from livetalk_model.config import get_preset
from livetalk_model.dry_run.memory import Model, predict
from livetalk_model.dry_run.record import (
    AUDIO_KV,
    DECODE,
    DENOISE,
    ENCODE,
    NEXT,
    PREPARE,
    SECOND,
    WARM,
    record_transformer,
    record_vae,
)
from livetalk_model.dry_run.work import attention_messages, slice_messages
from livetalk_model.flops import dit_flops
from livetalk_model.plan.layout import _vae
from livetalk_model.vae_cost import decode_flops, encode_flops
from livetalk_model.vae_traffic import decode_traffic, encode_traffic, warm_traffic

PRESET, GRID, LATENT = get_preset("14b"), (9, 48, 28), (96, 56)
KIND = {"device": "cuda", "dtype": torch.bfloat16}


@pytest.mark.parametrize("fp8", [False, True])
def test_flops_of_the_transformer(fp8):
    found = record_transformer(PRESET.dit, GRID, fp8=fp8, **KIND).phases
    flops = dit_flops(PRESET.dit, GRID)
    assert found[DENOISE].flops == flops.step
    assert found[AUDIO_KV].flops == flops.chunk
    assert found[PREPARE].flops == flops.avatar + flops.schedule


@pytest.mark.parametrize("reuse", [True, False])
def test_flops_of_the_vae(reuse):
    found = record_vae(PRESET.vae, LATENT, reuse=reuse, **KIND).phases
    pixels = {"height": 768, "width": 448, "reuse": reuse}
    warmed, decoded = (decode_flops(PRESET.vae, latents=n, warmed=2, **pixels) for n in (0, 7))
    assert found[WARM].flops == warmed
    assert found[SECOND].flops + 6 * found[DECODE].flops == decoded - warmed
    assert found[ENCODE].flops == encode_flops(PRESET.vae, frames=5, **pixels)


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4), (1, 8), (5, 1), (3, 2)])
def test_messages_of_a_step(shape):
    mesh = Mesh(ulysses=shape[0], ring=shape[1])
    sizes = {"tokens": 12096, "heads": 40, "head_dim": 128}
    for rank in (0, mesh.world - 1):
        found = record_transformer(PRESET.dit, GRID, mesh=mesh, rank=rank, **KIND)
        expected = volume(mesh, rank, itemsize=2, layers=40, outputs=64, **sizes)
        assert found.phases[DENOISE].messages == expected
        one = volume(mesh, rank, itemsize=2, layers=1, outputs=64, **sizes)
        del one["gather"]
        assert attention_messages(mesh, rank, dtype=torch.bfloat16, **sizes) == one


@pytest.mark.parametrize("grid", ["2x1", "4x2", "1x8", "3x5"])
def test_messages_of_the_vae(grid):
    slices, vae = Slices(grid=Grid.parse(grid), size=LATENT), _vae(PRESET.vae)
    whole = record_vae(PRESET.vae, LATENT, **KIND).phases
    options = {"slices": slices, "itemsize": 2}
    for rank in (0, slices.grid.world // 2):
        real = record_vae(PRESET.vae, LATENT, grid=slices.grid, rank=rank, **KIND).phases
        decode = decode_traffic(vae, rank=rank, first=False, **options)
        second = warm_traffic(vae, rank=rank, first=False, last=True, **options)
        first = warm_traffic(vae, rank=rank, first=True, last=False, **options)
        encode = [encode_traffic(vae, rank=rank, first=flag, **options) for flag in (True, False)]
        latents = 2 * 16 * slices.boxes[rank].pixels * (slices.grid.world - 1) * 2
        for name, halo, gather in (
            (DECODE, decode.halo, decode.gather),
            (NEXT, second.halo, second.gather),
            (WARM, first.halo + second.halo, first.gather + second.gather),
            (ENCODE, sum(t.halo for t in encode), sum(t.gather for t in encode) + latents),
        ):
            assert real[name].messages == {"halo": halo, "gather": gather}, name
            assert slice_messages(whole[name], slices, rank, 2) == real[name].messages, name


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("14b", {}),
        ("14b", {"fp8": True}),
        ("14b", {"fuse_bias": True}),
        ("14b", {"text_rows": 20}),
        ("14b", {"ranks": (8, 1)}),
        ("14b", {"ranks": (4, 2), "fp8": True}),
        ("small", {"device": "cpu", "dtype": torch.float32}),
        ("mid", {"device": "cpu"}),
        ("tiny", {"device": "cpu", "fp8": True}),
    ],
)
def test_memory(name, given):
    preset = get_preset(name)
    parts = {"dit": preset.dit, "vae": preset.vae, "audio": preset.audio, "size": preset.size}
    ulysses, ring = given.pop("ranks", (1, 1))
    parts |= KIND | given
    split = memory.Split(ulysses=ulysses, ring=ring)
    twin = memory.predict(memory.Model(split=split, **parts))
    mesh, grid = Mesh(ulysses=ulysses, ring=ring), Grid(rows=ulysses * ring, columns=1)
    found = predict(Model(mesh=mesh, grid=grid, **parts))
    assert found.total == pytest.approx(twin.total, rel=0.02)
    assert found.weights == twin.weights and found.peak_phase == twin.peak_phase
    if mesh.world == 1:
        assert found.caches == twin.caches
        kept = sum(twin.caches.values())
        for phase in ("portrait", "denoise", "decode", "encode", "warm decoder"):
            total = kept + twin.phases[phase].total
            assert kept + found.phases[phase].total == pytest.approx(total, rel=0.02), phase

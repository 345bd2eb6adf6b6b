"""The dry run against closed forms that run none of the model's code, and the runtime's own."""

import pytest
import torch
from closed_form import halo_pixels, step_bytes, step_flops

from livetalk_kernels.runtime.halo import HaloExchange
from livetalk_kernels.runtime.mesh import Grid, Mesh
from livetalk_kernels.runtime.slices import Slices
from livetalk_kernels.runtime.solo import SoloCommunicator
from livetalk_model.config import get_preset
from livetalk_model.dry_run.record import (
    AUDIO_KV,
    DECODE,
    DENOISE,
    ENCODE,
    PREPARE,
    WARM,
    record_transformer,
    record_vae,
)
from livetalk_model.dry_run.recorder import META, Recorder
from livetalk_model.dry_run.work import attention_messages, slice_messages
from livetalk_model.vae import VAE, DecoderCache

PRESET, GRID, LATENT = get_preset("14b"), (9, 48, 28), (96, 56)
KIND = {"device": "cuda", "dtype": torch.bfloat16}
SIZES = {"tokens": 12096, "heads": 40, "head_dim": 128}


@pytest.mark.parametrize(("name", "grid"), [("14b", GRID), ("14b", (3, 5, 7)), ("tiny", (9, 4, 4))])
@pytest.mark.parametrize("fp8", [False, True])
def test_flops_of_the_transformer(name, grid, fp8):
    config = get_preset(name).dit
    found = record_transformer(config, grid, fp8=fp8, **KIND).phases
    frames, rows, columns = grid
    expected = step_flops(config, frames * rows * columns, frames, config.text_len)
    phases = {"step": DENOISE, "chunk": AUDIO_KV, "session": PREPARE}
    assert {key: found[phase].flops for key, phase in phases.items()} == expected


TOTALS = {  # of a step of 14b on rank 0, in bytes
    (8, 1): {"all_to_all": 2_167_603_200, "gather": 2_709_504},
    (4, 2): {"all_to_all": 1_857_945_600, "ring": 1_238_630_400, "gather": 2_709_504},
    (2, 4): {"all_to_all": 1_238_630_400, "ring": 3_715_891_200, "gather": 2_709_504},
}


@pytest.mark.parametrize("shape", [*TOTALS, (1, 8), (5, 1), (3, 2)])
def test_messages_of_a_step(shape):
    mesh = Mesh(ulysses=shape[0], ring=shape[1])
    for rank in (0, mesh.world - 1):
        found = record_transformer(PRESET.dit, GRID, mesh=mesh, rank=rank, **KIND)
        sent = found.phases[DENOISE].messages
        assert sent == step_bytes(mesh, rank, itemsize=2, layers=40, outputs=64, **SIZES)
        assert sent == TOTALS.get(shape, sent) or rank
        one = attention_messages(mesh, rank, dtype=torch.bfloat16, **SIZES)
        assert one == step_bytes(mesh, rank, itemsize=2, layers=1, outputs=0, **SIZES)


HALOS = {"8x1": 13_250_048, "4x2": 9_538_112, "2x4": 7_371_744}  # of a latent of 14b, rank 4


@pytest.mark.parametrize("grid", [*HALOS, "3x5"])
def test_messages_of_the_vae_are_those_that_the_runtime_sends(grid):
    slices = Slices(grid=Grid.parse(grid), size=LATENT)
    whole = record_vae(PRESET.vae, LATENT, **KIND).phases
    for rank in (0, 4):
        recorder = Recorder("cuda", torch.bfloat16)
        comm = SoloCommunicator(rank, slices.grid.world, recorder.traffic)
        halo = HaloExchange(comm, slices.grid, LATENT)
        with META:
            vae = VAE(PRESET.vae, recorder.ops).to(torch.bfloat16)
        rows, columns = map(len, slices.boxes[rank])
        z = torch.empty(1, 16, 3, rows, columns, device=META)
        stream = DecoderCache(halo=halo)
        with torch.no_grad(), recorder:
            vae.prepare()
            with recorder.phase(WARM):
                vae.warm(z[:, :, :2], stream)
            with recorder.phase(DECODE):
                vae.decode_step(z[:, :, 2:], stream)
            with recorder.phase(ENCODE):
                video = torch.empty(1, 3, 5, 8 * rows, 8 * columns, device=META)
                halo.gather(vae.encode(video, halo=halo))
        for name in (WARM, DECODE, ENCODE):
            sent = slice_messages(whole[name], slices, rank, 2)
            assert recorder.phases[name].messages == sent, (rank, name)
    assert slice_messages(whole[DECODE], slices, 4, 2)["halo"] == HALOS.get(
        grid, slice_messages(whole[DECODE], slices, 4, 2)["halo"]
    )


def test_borders_are_those_of_the_closed_form():
    slices = Slices(grid=Grid(rows=4, columns=2), size=LATENT)
    for factor in (1, 8):
        found = slices.halo_pixels(2, (1, 1, 1, 1), factor)
        assert found == halo_pixels(24 * factor, 28 * factor, (2, 1))


def test_memory_is_that_of_tensors_while_they_live():
    recorder = Recorder("cuda", torch.float32)
    with torch.no_grad(), recorder:
        a = torch.empty(1000, device=META)
        with recorder.phase("sum"):
            b = a + a
            c = b.view(10, 100)
            del b
            d = c.double()
        assert recorder.held == a.nbytes + c.nbytes + d.nbytes
        del c, d
        assert recorder.held == a.nbytes
    found = recorder.phases["sum"]
    assert found.peak.total == 4000 + 4000 + 8000 and found.grown == 12000
    assert found.launches == 2 and found.moved == 12000 + 12000

"""The VAE in slices: as exact as the order of summation, with the traffic that formulas say."""

import pytest
import torch
from crop_overlap import decode_tiles, encode_tiles
from torch import Tensor

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.runtime.comm import Communicator
from livetalk_kernels.runtime.halo import WHOLE, HaloExchange, Whole
from livetalk_kernels.runtime.mesh import Grid
from livetalk_kernels.runtime.slices import Slices
from livetalk_kernels.testing.memory import peak_bytes
from livetalk_kernels.testing.processes import run_ranks
from livetalk_model.color import match_color, reference_stats
from livetalk_model.config import VAEConfig
from livetalk_model.dry_run.record import DECODE, ENCODE, NEXT, SECOND, WARM, record_vae
from livetalk_model.dry_run.work import slice_messages
from livetalk_model.vae import VAE, DecoderCache
from livetalk_model.weights.fill import random_module

BOUND = 1e-5
SIZE = (96, 160)  # 12 x 20 latents
UNEVEN = (88, 104)  # 11 x 13 latents: odd ones, and no split of them is even
NARROW = (16, 64)  # 2 x 8 latents: slices of one row

# grid, pixels, width of the VAE, overlap
Case = tuple[str, tuple[int, int], int, bool]
CASES: dict[int, list[Case]] = {
    2: [
        ("2x1", SIZE, 8, False),
        ("1x2", UNEVEN, 16, True),
        ("2x1", NARROW, 16, True),
    ],
    3: [
        ("3x1", UNEVEN, 8, True),
        ("1x3", SIZE, 8, False),
        ("3x1", (24, 16), 16, True),
    ],
    4: [
        ("2x2", SIZE, 8, True),
        ("2x2", UNEVEN, 16, False),
        ("1x4", UNEVEN, 8, True),
    ],
    8: [
        ("4x2", SIZE, 8, True),
        ("2x4", UNEVEN, 8, False),
        ("1x8", NARROW, 8, False),
    ],
}


def random_vae(dim: int, **schedule: bool) -> VAE:
    ops = bind_ops(KernelConfig(), device="cpu", dtype=torch.float32)
    with torch.device("meta"):
        vae = VAE(VAEConfig(dim=dim), ops, **schedule)
    random_module(vae, seed=0, dtype=torch.float32, device="cpu")
    vae.prepare()
    return vae


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def latent_size(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 8, size[1] // 8


def chunks(vae: VAE, z: Tensor, halo: Whole = WHOLE) -> Tensor:
    """Two chunks as a stream decodes them; the second begins with the encoded end of the first."""
    own = halo.take(z)
    frames, motion = [], own[:, :, :1]
    for chunk in own[:, :, 1:].split(2, dim=2):
        cache = DecoderCache(halo=halo)
        vae.warm(motion, cache)
        fork = cache.fork()
        frames += [vae.decode_step(latent, cache) for latent in chunk.split(1, dim=2)]
        motion = vae.encode(torch.cat(frames[-2:], 2)[:, :, -5:], halo=halo)
    assert torch.equal(vae.decode_step(chunk[:, :, :1], fork), frames[-2])
    return torch.cat(frames, dim=2)


def compare(comm: Communicator, cases: list[Case], schedule: dict[str, bool]) -> dict[str, float]:
    """Compute the errors of every case on rank 0."""
    found = {}
    vaes = {dim: random_vae(dim, **schedule) for dim in {case[2] for case in cases}}
    for grid, size, dim, overlap in cases:
        vae, latent = vaes[dim], latent_size(size)
        halo = HaloExchange(comm, Grid.parse(grid), latent, overlap=overlap)
        video, z = noise(1, 3, 9, *size).clamp(-1, 1), noise(1, 16, 5, *latent)
        latents = halo.gather(vae.encode(halo.take(video), halo=halo))
        frames = halo.collect(vae.decode(halo.take(z[:, :, :3]), halo=halo, clamp=False))
        streamed = halo.collect(chunks(vae, z, halo))
        name = f"{grid} {size} {dim} {overlap}"
        if comm.rank:
            assert frames is None and streamed is None
            continue
        assert frames is not None and streamed is not None
        found[f"{name} encode"] = error(latents, vae.encode(video))
        found[f"{name} decode"] = error(frames, vae.decode(z[:, :, :3], clamp=False))
        found[f"{name} stream"] = error(streamed, chunks(vae, z))
    return found


@pytest.mark.parametrize("world", CASES)
def test_slices_equal_the_whole(world: int) -> None:
    errors = run_ranks(compare, world, CASES[world], {})[0]
    assert len(errors) == 3 * len(CASES[world])
    assert max(errors.values()) < BOUND, errors


@pytest.mark.parametrize("schedule", [{"reuse": False}, {"fuse_bias": True}])
def test_other_schedules(schedule: dict[str, bool]) -> None:
    cases = [("2x1", (24, 40), 8, True), ("1x2", (24, 40), 8, False)]
    errors = run_ranks(compare, 2, cases, schedule)[0]
    assert max(errors.values()) < BOUND, errors


def test_published_width() -> None:
    errors = run_ranks(compare, 2, [("2x1", (24, 16), 96, False)], {})[0]
    assert max(errors.values()) < BOUND, errors


# The published scheme


def test_crop_and_overlap_is_no_match() -> None:
    """Tiles that are coded apart are wrong by percents, ours by rounding."""
    grid, size, dim = "2x2", UNEVEN, 8
    ours = run_ranks(compare, 4, [(grid, size, dim, False)], {})[0]
    vae, slices = random_vae(dim), Slices(grid=Grid.parse(grid), size=latent_size(size))
    video, z = noise(1, 3, 9, *size).clamp(-1, 1), noise(1, 16, 3, *slices.size)
    oracle = {
        "encode": error(encode_tiles(vae, video, slices), vae.encode(video)),
        "decode": error(decode_tiles(vae, z, slices), vae.decode(z, clamp=False)),
    }
    for name, theirs in oracle.items():
        (own,) = (value for key, value in ours.items() if key.endswith(name))
        print(f"{name} {grid}: halo exchange {own:.1e}, overlap and crop {theirs:.1e}")
        assert own < BOUND and theirs > 1000 * own and theirs > 0.01
    alone = Slices(grid=Grid.parse("1x1"), size=slices.size)
    assert torch.equal(decode_tiles(vae, z, alone), vae.decode(z, clamp=False))


# Traffic


def count_traffic(comm: Communicator, grid: str, size: tuple[int, int]) -> list[bool]:
    """Count bytes sent, and those of a dry run of the whole picture, phase by phase."""
    vae, latent = random_vae(8), latent_size(size)
    dry = record_vae(vae.config, latent, device="cpu", dtype=torch.float32).phases
    slices, equal = Slices(grid=Grid.parse(grid), size=latent), []

    def check(name: str) -> None:
        expected = slice_messages(dry[name], slices, comm.rank, 4)
        equal.append({kind: comm.traffic.bytes[kind] for kind in expected} == expected)
        comm.traffic.clear()

    for overlap in (False, True):
        halo = HaloExchange(comm, slices.grid, latent, overlap=overlap)
        video, z = halo.take(noise(1, 3, 5, *size)), halo.take(noise(1, 16, 4, *latent))
        stream, again = DecoderCache(halo=halo), DecoderCache(halo=halo)
        comm.traffic.clear()
        halo.gather(vae.encode(video, halo=halo))
        check(ENCODE)
        vae.warm(z[:, :, :2], stream)
        check(WARM)
        vae.decode_step(z[:, :, 2:3], stream)
        check(SECOND)
        vae.decode_step(z[:, :, 3:4], stream)
        check(DECODE)
        vae.warm(z[:, :, :1], again)
        comm.traffic.clear()
        vae.warm(z[:, :, 1:2], again)
        check(NEXT)
    return equal


@pytest.mark.parametrize(("world", "grid"), [(2, "2x1"), (4, "2x2"), (3, "1x3")])
def test_traffic_is_that_of_the_dry_run(world: int, grid: str) -> None:
    for rank, equal in enumerate(run_ranks(count_traffic, world, grid, (40, 56))):
        assert all(equal) and len(equal) == 10, (rank, equal)


# Memory


def count_bytes(comm: Communicator, grid: str) -> list[int]:
    """Count the peak of allocated bytes while decoding and encoding, and the cache's."""
    vae, size = random_vae(8), latent_size(SIZE)
    halo = HaloExchange(comm, Grid.parse(grid), size)
    z, cache = halo.take(noise(1, 16, 2, *size)), DecoderCache(halo=halo)

    def decode() -> Tensor:
        return torch.cat([vae.decode_step(latent, cache) for latent in z.split(1, 2)], 2)

    video = halo.take(noise(1, 3, 5, *SIZE)).clone()
    vae.encode(video, halo=halo)  # whatever is allocated once
    peaks = [peak_bytes(work) for work in (decode, lambda: vae.encode(video, halo=halo))]
    return [*peaks, sum(frames.nbytes for frames in cache.frames.values())]


def test_ranks_share_the_memory() -> None:
    """Each rank holds its part and the halo around it."""
    whole = run_ranks(count_bytes, 1, "1x1")[0]
    for world, grid in ((2, "2x1"), (4, "2x2")):
        parts = run_ranks(count_bytes, world, grid)
        for name, index, slack in (("decode", 0, 1.6), ("encode", 1, 1.6), ("cache", 2, 1.25)):
            most = max(part[index] for part in parts)
            print(f"{name}: {most / whole[index]:.3f} of one rank's on {world}")
            assert most < slack * whole[index] / world, (name, grid)


# Colour


def match(comm: Communicator, grids: list[str]) -> list[bool]:
    """Frames matched in slices equal those matched whole; statistics are the same on all ranks."""
    frames, portrait = noise(1, 3, 4, *UNEVEN).clamp(-1, 1), noise(3, *UNEVEN, seed=1)
    frames[:, :, 1] = 0.25  # a flat one: no spread to be stretched
    stats = reference_stats(portrait.clamp(-1, 1))
    found = []
    for grid in grids:
        halo = HaloExchange(comm, Grid.parse(grid), latent_size(UNEVEN))
        own = match_color(halo.take(frames), stats, 0.8, halo=halo)
        whole = halo.gather(own)
        found.append(error(whole, match_color(frames, stats, 0.8)) < 1e-6)
        std, mean = halo.spread(noise(3, 2, seed=comm.rank).abs(), noise(3, 2, seed=comm.rank))
        both = torch.stack((std, mean)).double()
        lowest, highest = (comm.all_reduce(both.clone(), kind) for kind in ("min", "max"))
        found.append(torch.equal(lowest, highest))
        pixels = halo.collect((own[0].permute(1, 2, 3, 0) * 127).to(torch.uint8), axes=(1, 2))
        if comm.rank == 0:
            assert pixels is not None
            expected = (whole[0].permute(1, 2, 3, 0) * 127).to(torch.uint8)
            found.append(torch.equal(pixels, expected))
    return found


def test_colours_are_matched_over_all_slices() -> None:
    for found in run_ranks(match, 4, ["2x2", "4x1", "1x4"]):
        assert all(found), found

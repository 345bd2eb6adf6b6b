"""The video VAE: golden parity, both schedules, streaming and warming."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from livetalk_kernels import KernelConfig, UserError, bind_ops
from livetalk_kernels.dispatch import Choice
from livetalk_kernels.ops import Ops
from livetalk_model.config import VAEConfig
from livetalk_model.dry_run.work import vae_flops
from livetalk_model.vae import VAE, DecoderCache, EncoderCache, StreamCache
from livetalk_model.vae_layers import (
    CausalConv,
    NormSiLU,
    ResidualBlock,
    fold_upsampling,
    interleave_frames,
    interleave_pixels,
)
from livetalk_model.weights.fill import load_module, open_weights, random_module

FP32 = torch.float32
Golden = Callable[[str], dict[str, Tensor]]
Checkpoint = Callable[[str], Path]


def empty_vae(
    dim: int, *, dtype: torch.dtype = FP32, backend: str = "auto", **schedule: bool
) -> VAE:
    ops = bind_ops(KernelConfig(default=backend), device="cpu", dtype=dtype)
    with torch.device("meta"):
        return VAE(VAEConfig(dim=dim), ops, **schedule)


def random_vae(
    dim: int, *, dtype: torch.dtype = FP32, backend: str = "auto", **schedule: bool
) -> VAE:
    vae = empty_vae(dim, dtype=dtype, backend=backend, **schedule)
    random_module(vae, seed=0, dtype=dtype, device="cpu")
    vae.prepare()
    return vae


def loaded_vae(
    path: Path, dim: int, *, dtype: torch.dtype = FP32, backend: str = "auto", **schedule: bool
) -> VAE:
    vae = empty_vae(dim, dtype=dtype, backend=backend, **schedule)
    with open_weights(path) as files:
        load_module(vae, files, dtype=dtype, device="cpu")
    vae.prepare()
    return vae


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(frames: int, height: int, width: int) -> Tensor:
    return noise(1, 3, frames, height, width).clamp(-1, 1)


def stream(vae: VAE, latents: Tensor, cache: DecoderCache) -> Tensor:
    return torch.cat([vae.decode_step(z, cache) for z in latents.split(1, dim=2)], dim=2)


def error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def to_video(u8: Tensor) -> Tensor:
    """[T, H, W, 3] -> [1, 3, T, H, W] in [-1, 1]."""
    return ((u8.float() / 255 - 0.5) * 2).permute(3, 0, 1, 2)[None]


# Golden parity; both widths have the same inputs

DEFAULT, FUSED, PUBLISHED = {}, {"fuse_bias": True}, {"reuse": False}
SCHEDULES = [
    pytest.param(schedule, id=name)
    for name, schedule in (("default", DEFAULT), ("fused", FUSED), ("published", PUBLISHED))
]
PLAIN = pytest.param({"reuse": False, "backend": "reference"}, id="reference")
Schedule = dict[str, Any]


@pytest.mark.parametrize("schedule", [*SCHEDULES, PLAIN])
def test_golden_small_dim16(
    small_golden: Golden, golden_checkpoint: Checkpoint, schedule: Schedule
) -> None:
    vae = loaded_vae(golden_checkpoint("tiny_a") / "Wan2.1_VAE.pth", 16, **schedule)
    known = small_golden("vae_dim16")
    video, z = to_video(known["video_u8"]), known["z3"][None]
    for frames in (1, 5):
        assert error(vae.encode(video[:, :, :frames])[0], known[f"encode_{frames}"]) < 1e-5
    whole = known["decode_3_unclamped"].clamp(-1, 1)
    assert error(vae.decode(z), whole) < 1e-5
    cache = DecoderCache()
    vae.warm(z[:, :, :1], cache)
    fork = cache.fork()
    assert error(stream(vae, z[:, :, 1:], cache), whole[:, :, 1:]) < 1e-5
    vae.warm(z[:, :, 1:2], fork)
    assert error(stream(vae, z[:, :, 2:], fork), whole[:, :, 5:]) < 1e-5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_golden_small_dim96(
    small_golden: Golden, golden_checkpoint: Checkpoint, schedule: Schedule
) -> None:
    vae = loaded_vae(golden_checkpoint("vae_96"), 96, **schedule)
    known, inputs = small_golden("vae_dim96"), small_golden("vae_dim16")
    assert error(vae.encode(to_video(inputs["video_u8"]))[0], known["encode_5"]) < 1e-5
    frames = stream(vae, inputs["z3"][None, :, :2], DecoderCache())
    assert error(frames, known["decode_2"]) < 1e-5


@pytest.mark.parametrize("schedule", [*SCHEDULES, PLAIN])
def test_golden_dim16(golden: Golden, golden_checkpoint: Checkpoint, schedule: Schedule) -> None:
    """The whole video; its beginning is compared above."""
    vae = loaded_vae(golden_checkpoint("tiny_a") / "Wan2.1_VAE.pth", 16, **schedule)
    known = golden("vae_dim16_64x96")
    video, z = to_video(known["video_u8"]), known["z9"][None]
    grey = torch.cat([video[:, :, :1], torch.zeros_like(video[:, :, 1:])], dim=2)
    assert error(vae.encode(video)[0], known["encode_33"]) < 1e-5
    assert error(vae.encode(grey)[0], known["encode_image_plus_32_zero"]) < 1e-5
    whole = known["decode_9_unclamped"].clamp(-1, 1)
    assert error(vae.decode(z), whole) < 1e-5
    assert error(vae.decode(z[:, :, :2]), known["decode_2"]) < 1e-5
    cache = DecoderCache()
    vae.warm(z[:, :, :2], cache)
    assert error(stream(vae, z[:, :, 2:], cache), whole[:, :, 5:]) < 1e-5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_golden_dim96(golden: Golden, golden_checkpoint: Checkpoint, schedule: Schedule) -> None:
    """The third latent, after warming; what comes before is compared above."""
    vae = loaded_vae(golden_checkpoint("vae_96"), 96, **schedule)
    whole = golden("vae_dim96_64x96")["decode_9_unclamped_first9frames"].clamp(-1, 1)
    z = golden("vae_dim16_64x96")["z9"][None]
    cache = DecoderCache()
    vae.warm(z[:, :, :2], cache)
    assert error(vae.decode_step(z[:, :, 2:3], cache), whole[:, :, 5:]) < 1e-5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_golden_stages(golden: Golden, golden_checkpoint: Checkpoint, schedule: Schedule) -> None:
    """Every traced stage, in the first and the second temporal piece."""
    vae = loaded_vae(golden_checkpoint("tiny_a") / "Wan2.1_VAE.pth", 16, **schedule)
    trace = golden("vae_trace_dim16")
    seen: dict[str, list[Tensor]] = {}

    def record(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: seen.setdefault(name, []).append(output.clone())

    for name, module in vae.named_modules():
        module.register_forward_hook(record(name))
    for work, run, value in (
        ("encode5", vae.encode, trace["encode5.video"]),
        ("decode2", vae.decode, trace["decode2.z"][None]),
    ):
        seen.clear()
        run(value)
        stages = {key for key in trace if key.startswith(f"{work}.") and ".call" in key}
        assert stages
        for key in stages:
            name, call = key.removeprefix(f"{work}.").rsplit(".call", 1)
            pieces = seen[name]  # the published code calls conv1 and conv2 once, on all pieces
            actual = torch.cat(pieces, 2) if name in ("conv1", "conv2") else pieces[int(call)]
            assert error(actual, trace[key]) < 1e-5, key


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_golden_bf16(
    small_golden: Golden, golden_checkpoint: Checkpoint, schedule: Schedule
) -> None:
    """As close to fp32 as the published model in bf16 (encode 0.98 %, decode 1.35 %)."""
    path = golden_checkpoint("tiny_a") / "Wan2.1_VAE.pth"
    vae = loaded_vae(path, 16, **schedule, dtype=torch.bfloat16)
    known = small_golden("vae_dim16")
    latent = vae.encode(to_video(known["video_u8"]))
    frames = vae.decode(known["z3"][None])
    assert latent.dtype == frames.dtype == torch.bfloat16
    assert error(latent[0], known["encode_5"]) < 0.0098
    assert error(frames, known["decode_3_unclamped"].clamp(-1, 1)) < 0.0135


# Both schedules


@pytest.mark.parametrize(
    ("dim", "height", "width", "latents"),
    [(8, 8, 8, 3), (8, 32, 64, 4), (16, 72, 40, 3), (24, 24, 56, 2), (64, 16, 24, 3)],
)
@pytest.mark.parametrize("schedule", SCHEDULES[:2])
def test_schedules_agree(
    dim: int, height: int, width: int, latents: int, schedule: Schedule
) -> None:
    fast = random_vae(dim, **schedule)
    published = random_vae(dim, reuse=False, backend="reference")
    video, z = pixels(9, height, width), noise(1, 16, latents, height // 8, width // 8)
    assert error(fast.encode(video), published.encode(video)) < 1e-5
    assert error(fast.decode(z), published.decode(z)) < 1e-5


def test_fused_biases_need_no_pass_of_their_own() -> None:
    """What `ResidualBlock` says of its passes, in decoding a latent that others precede."""
    vae = random_vae(8, fuse_bias=True)
    calls: list[tuple[str, bool]] = []  # op, with a bias

    def noted(op: str, choice: Choice, place: int) -> Choice:
        def run(*arguments: Any, **keywords: Any) -> Any:
            calls.append((op, arguments[place] is not None))
            return choice.run(*arguments, **keywords)

        return replace(choice, run=run)

    cache = DecoderCache()
    vae.warm(noise(1, 16, 2, 2, 3), cache)
    places = {"causal_conv3d": 3, "rms_norm_silu": 2, "add_residual": 2}
    for module in vae.modules():
        if isinstance(module, CausalConv | NormSiLU | ResidualBlock):
            choices = module.ops.choices
            module.ops = Ops({op: noted(op, choices[op], place) for op, place in places.items()})
    vae.decode_step(noise(1, 16, 1, 2, 3), cache)
    blocks, shortcuts = 14, 1
    assert Counter(calls) == {
        ("rms_norm_silu", False): blocks + 1,  # and the head
        ("causal_conv3d", False): 2 * blocks + shortcuts,
        ("rms_norm_silu", True): blocks,
        ("add_residual", True): blocks,
        ("causal_conv3d", True): 5,  # conv1, conv2, head, two of time; images are the layers' own
    }


@pytest.mark.parametrize("dim", [8, 16])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmed", [1, 2, 3])
def test_warming_replaces_decoding(dim: int, schedule: Schedule, warmed: int) -> None:
    vae = random_vae(dim, **schedule)
    z = noise(1, 16, 5, 3, 4)
    cache = DecoderCache()
    vae.warm(z[:, :, :warmed], cache)
    later = vae.decode(z)[:, :, 4 * warmed - 3 :]
    assert error(stream(vae, z[:, :, warmed:], cache), later) < 1e-5


def test_warming_in_parts() -> None:
    vae = random_vae(8)
    z = noise(1, 16, 4, 2, 3)
    cache = DecoderCache()
    vae.decode_step(z[:, :, :1], cache)
    vae.warm(z[:, :, 1:2], cache)
    vae.warm(z[:, :, 2:3], cache)
    assert error(vae.decode_step(z[:, :, 3:], cache), vae.decode(z)[:, :, 9:]) < 1e-5


def test_folded_upsampling_is_exact() -> None:
    weight, x = noise(6, 5, 3, 3).double(), noise(2, 5, 3, 4, 7, seed=1).double()
    taps = fold_upsampling(weight.float()).double()
    images = x.transpose(1, 2).flatten(0, 1)
    expected = nn.functional.conv2d(
        nn.functional.interpolate(images, scale_factor=2.0, mode="nearest-exact"),
        weight.float().double(), padding=1,
    )  # fmt: skip
    phases = nn.functional.conv2d(images, taps, padding=1).unflatten(0, (2, 3)).transpose(1, 2)
    actual = interleave_pixels(phases).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_interleaved_frames() -> None:
    halves = noise(2, 6, 2, 3, 4)
    frames = interleave_frames(halves)
    assert torch.equal(frames[:, :, 0::2], halves[:, :3])
    assert torch.equal(frames[:, :, 1::2], halves[:, 3:])


def test_batch() -> None:
    vae = random_vae(8)
    video, z = noise(2, 3, 5, 16, 24).clamp(-1, 1), noise(2, 16, 3, 2, 3)
    latents, frames = vae.encode(video), vae.decode(z)
    for index in range(2):
        one = slice(index, index + 1)
        assert error(latents[one], vae.encode(video[one])) < 1e-5
        assert error(frames[one], vae.decode(z[one])) < 1e-5


# Streams


@pytest.mark.parametrize("reuse", [True, False])
def test_streams_equal_whole_videos(reuse: bool) -> None:
    vae = random_vae(8, reuse=reuse)
    z, video = noise(1, 16, 4, 2, 3), pixels(13, 16, 24)
    frames = stream(vae, z, DecoderCache())
    assert frames.shape == (1, 3, 13, 16, 24)
    assert torch.equal(frames, vae.decode(z))
    cache = EncoderCache()
    latents = [vae.encode_step(piece, cache) for piece in video.split([1, 4, 4, 4], dim=2)]
    assert torch.equal(torch.cat(latents, 2), vae.encode(video))


def test_later_frames_change_nothing_before() -> None:
    vae = random_vae(8)
    z, video = noise(1, 16, 3, 2, 3), pixels(9, 16, 24)
    assert torch.equal(vae.decode(z)[:, :, :5], vae.decode(z[:, :, :2]))
    assert torch.equal(vae.encode(video)[:, :, :2], vae.encode(video[:, :, :5]))


@pytest.mark.parametrize("reuse", [True, False])
def test_forks_are_independent(reuse: bool) -> None:
    vae = random_vae(8, reuse=reuse)
    z, other = noise(1, 16, 3, 2, 3), noise(1, 16, 3, 2, 3, seed=1)
    cache = DecoderCache()
    vae.warm(z[:, :, :1], cache)
    fork = cache.fork()
    assert isinstance(fork, DecoderCache) and fork.pieces == 1
    stored = {name: frames.clone() for name, frames in fork.frames.items()}
    first = stream(vae, z[:, :, 1:], cache)
    assert fork.pieces == 1 and fork.frames.keys() == stored.keys()
    assert all(torch.equal(fork.frames[name], stored[name]) for name in stored)
    twig = fork.fork()
    stream(vae, other[:, :, 1:], fork)
    assert torch.equal(stream(vae, z[:, :, 1:], twig), first)


def test_cache_holds_copies() -> None:
    """Neither the caller's frames nor a larger tensor behind a view."""
    vae = random_vae(8)
    video = pixels(5, 16, 24).contiguous(memory_format=torch.channels_last_3d)
    cache = EncoderCache()
    vae.encode_step(video[:, :, :1], cache)
    expected = vae.encode(video)[:, :, 1:]
    kept = video.clone()
    video[:, :, :1] = 0
    assert torch.equal(vae.encode_step(kept[:, :, 1:], cache), expected)
    assert cache.frames
    for frames in cache.frames.values():
        assert frames.shape[2] <= 2
        assert frames.untyped_storage().nbytes() <= 3 * frames[:, :, :1].nbytes


def test_cache_joins_short_pieces() -> None:
    cache = StreamCache()
    for value in (1.0, 2.0, 3.0):
        cache.remember("conv", torch.full((1, 1, 1, 1, 1), value), 2)
    assert cache.frames["conv"].flatten().tolist() == [2, 3]


# Rules


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 8, 9])
def test_trailing_frames_are_ignored(frames: int) -> None:
    vae = random_vae(8)
    video = pixels(9, 16, 16)
    latents = 1 + (frames - 1) // 4
    z = vae.encode(video[:, :, :frames])
    assert z.shape == (1, 16, latents, 2, 2)
    assert torch.equal(z, vae.encode(video)[:, :, :latents])


def test_frames_are_clamped() -> None:
    vae = random_vae(8)
    nn.init.constant_(vae.decoder.head["2"].bias, 2.0)
    frames = vae.decode(noise(1, 16, 2, 2, 2))
    assert frames.max() == 1 and frames.shape == (1, 3, 5, 16, 16)


def test_wrong_pieces_are_refused() -> None:
    vae = random_vae(8)
    cache = EncoderCache()
    with pytest.raises(UserError, match="4 frames where a stream takes 1"):
        vae.encode_step(pixels(4, 16, 16), cache)
    vae.encode_step(pixels(1, 16, 16), cache)
    with pytest.raises(UserError, match="1 frames where a stream takes 4"):
        vae.encode_step(pixels(1, 16, 16), cache)
    for video in (pixels(1, 16, 20), pixels(1, 0, 16), pixels(1, 16, 16)[:, :2]):
        with pytest.raises(UserError, match="multiples of 8"):
            vae.encode(video)
    with pytest.raises(UserError, match="no frames"):
        vae.encode(pixels(0, 16, 16))
    with pytest.raises(UserError, match="at least one"):
        vae.decode(noise(1, 16, 0, 2, 2))
    for latents in (noise(1, 16, 2, 2, 2), noise(1, 8, 1, 2, 2)):
        with pytest.raises(UserError, match="a step takes 1 of 16"):
            vae.decode_step(latents, DecoderCache())


def test_forgotten_preparation_is_noticed() -> None:
    vae = empty_vae(8, reuse=True)
    random_module(vae, seed=0, dtype=FP32, device="cpu")
    with pytest.raises(AssertionError, match="prepare"):
        vae.decode(noise(1, 16, 1, 2, 2))


# Names and cost


def test_keys_are_the_published_ones(facts: dict) -> None:
    tensors = facts["vae"]["tensors"]
    published = {tensor["key"]: tuple(tensor["shape"]) for tensor in tensors}
    vae = empty_vae(96, reuse=True)
    assert {name: tuple(p.shape) for name, p in vae.named_parameters()} == published
    vae.prepare()
    assert vae.state_dict().keys() == published.keys()


def test_cost_is_the_published_one(facts: dict) -> None:
    published = facts["flops"]["vae_conv_768x448"]
    counted = vae_flops(VAEConfig(), (768, 448), reuse=False)
    decoded = counted["warm decoder"] + counted["decode"]  # the facts leave out attention
    assert 1 <= decoded / published["decode_9_latents"] < 1.01
    assert 1 <= counted["encode"] / published["encode_5_frames"] < 1.01


def test_reuse_costs_less() -> None:
    ours, published = (vae_flops(VAEConfig(dim=8), (64, 64), reuse=flag) for flag in (True, False))
    for work in ("encode", "decode", "warm decoder"):
        assert ours[work] < 0.97 * published[work]

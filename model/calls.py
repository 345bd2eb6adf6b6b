"""Every call of an op that a model makes for a stream of one chunk, found without its weights."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from livetalk_kernels.bench.calls import case_of
from livetalk_kernels.bench.tune import Call, merge
from livetalk_kernels.dispatch import Choice
from livetalk_kernels.ops import Ops
from livetalk_kernels.precision import FP8
from livetalk_kernels.registry import OPS_PACKAGE, op_names

from .avatar import Avatar
from .config import CHUNK_FRAMES, LATENT_FRAMES, MOTION_FRAMES, MOTION_LATENTS, Preset
from .dit import DiT
from .sampler import timesteps
from .stream.stats import StageClock
from .stream.work import WorkOnce
from .vae import COLORS, SPATIAL, VAE

META = torch.device("meta")
CONV_DEFAULTS = {"stride": (1, 1, 1), "padding": (0, 0, 0, 0)}


def model_calls(
    preset: Preset,
    *,
    size: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    fp8: bool,
    fuse_bias: bool = False,
    m_major_scales: bool = False,
    steps: int = 4,
) -> list[Call]:
    """Record a chunk on the meta device, on which nothing is calculated.

    Counted are the start of a session and one chunk that is not its first: what a preset of this
    size does again and again.

    Args:
        preset: The model.
        size: Height and width of the picture in pixels.
        device: Where the cases are to lie.
        dtype: Of DiT and VAE.
        fp8: Linear layers of the DiT's blocks in FP8.
        fuse_bias: The VAE's residual blocks add their biases in other passes.
        m_major_scales: FP8 scales of 1x128 blocks lie with neighbouring tokens side by side.
        steps: Denoising steps of a chunk.

    Returns:
        Calls that differ, with their number.
    """
    found: list[Call] = []

    def note(op: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        found.append(Call(case=case_of(op, device, dtype, arguments, keywords)))

    ops = _recording(note)
    with META:
        dit = DiT(preset.dit, ops, fp8=fp8, m_major_scales=m_major_scales)
        vae = VAE(preset.vae, ops, fuse_bias=fuse_bias)
    for module in (dit, vae):
        _cast(module, dtype)
    vae.prepare()
    with torch.inference_mode():
        _run_chunk(dit, vae, size, steps)
    return merge(found)


def _recording(note: Callable[[str, tuple[Any, ...], dict[str, Any]], None]) -> Ops:
    """Ops that note each call and give the contract's empty outputs."""

    def noting(op: str) -> Choice:
        empty = importlib.import_module(f"{OPS_PACKAGE}.{op}").empty_outputs
        # A schema has no defaults for lists, so the contract's own are not among the arguments.
        defaults = CONV_DEFAULTS if op == "causal_conv3d" else {}

        def run(*arguments: Any, **keywords: Any) -> Any:
            note(op, arguments, keywords)
            return empty(*arguments, **(defaults | keywords))

        return Choice(
            name="recorder", run=run, pack=lambda weight: None, approximate=False, reason=""
        )

    return Ops({op: noting(op) for op in op_names()})


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """As loading does: FP8 weights and their scales keep their dtype."""
    for name, parameter in module.named_parameters():
        if parameter.dtype != FP8 and not name.endswith("weight_scale"):
            parameter.data = parameter.data.to(dtype)


def _run_chunk(dit: DiT, vae: VAE, size: tuple[int, int], steps: int) -> None:
    config, (height, width) = dit.config, size

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device=META, dtype=dit.dtype)

    latent = (config.out_dim, LATENT_FRAMES, height // SPATIAL, width // SPATIAL)
    avatar = Avatar(
        context=empty(config.text_len // 2, config.text_dim),
        clip_fea=empty(1, config.image_len, config.image_dim),
        condition=empty(*latent),
        portrait=torch.empty(COLORS, height, width, dtype=torch.uint8, device=META),
        model="",
    )
    work = WorkOnce(dit, vae, avatar, timesteps(steps, 5.0), StageClock(META))
    work.know_motion(empty(*latent)[:, :MOTION_LATENTS])
    window = (config.audio_window, config.audio_layers, config.audio_dim)
    work.begin_chunk(empty(1, CHUNK_FRAMES, *window))
    for index in range(steps):
        dit(empty(1, *latent), **vars(work.inputs(index)))
    for _ in work.decode(empty(1, *latent), CHUNK_FRAMES):
        pass
    vae.encode(empty(1, COLORS, MOTION_FRAMES, height, width))

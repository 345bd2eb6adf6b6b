"""Models of a preset with random weights, for the benchmark scripts."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.ops import Ops
from livetalk_kernels.runtime.sequence_parallel import SequenceParallel
from livetalk_model.config import (
    CHUNK_FRAMES,
    LATENT_FRAMES,
    DiTConfig,
    Preset,
    get_preset,
)
from livetalk_model.dit import AudioContext, DiT
from livetalk_model.layers import ContextKV, NormRope
from livetalk_model.quantize import Fp8Linear
from livetalk_model.sampler import timesteps
from livetalk_model.vae import SPATIAL, VAE
from livetalk_model.weights.fill import random_module
from livetalk_model.weights.random_weights import RANDOM_SEED

STEPS, SHIFT = 4, 5.0
PROMPT_ROWS = 60  # text rows: a sentence or two

# What the published code uses: PyTorch's own kernels.
TORCH = ("reference", "chunk_attention=sdpa", "context_attention=sdpa", "audio_attention=sdpa")

Step = Callable[[Tensor], Tensor]
"""One denoising step: latents [1, 16, T, h, w] -> flow, float32."""


def sized(name: str, *, layers: int | None = None, size: tuple[int, int] | None = None) -> Preset:
    """Adapt a preset, with fewer blocks or another picture size.

    Args:
        name: Name of the preset.
        layers: Blocks of the transformer.
        size: Height and width of the picture in pixels.

    Raises:
        UserError: There is no such preset, or the size is impossible.
    """
    preset = get_preset(name)
    dit = preset.dit if layers is None else replace(preset.dit, num_layers=layers)
    return replace(preset, dit=dit, size=size or preset.size)


def latent_size(preset: Preset) -> tuple[int, int, int]:
    """Compute frames, rows and columns of a chunk's latents."""
    return LATENT_FRAMES, preset.size[0] // SPATIAL, preset.size[1] // SPATIAL


def parameter_bytes(config: DiTConfig, dtype: torch.dtype, *, fp8: bool) -> int:
    """Count the bytes of a transformer's weights."""
    with torch.device("meta"):
        dit = DiT(config, Ops({}), fp8=fp8)
    kept = {
        f"{name}.{part}"
        for name, module in dit.named_modules()
        if isinstance(module, Fp8Linear)
        for part in ("weight", "weight_scale")
    }
    return sum(
        p.numel() * (p.element_size() if name in kept else dtype.itemsize)
        for name, p in dit.named_parameters()
    )


def fill(module: nn.Module, *, dtype: torch.dtype, device: torch.device) -> None:
    """Give a module on the meta device the random weights of ``livetalk --preset``."""
    key_map = module.key_map() if isinstance(module, DiT) else None
    random_module(module, seed=RANDOM_SEED, dtype=dtype, device=device, key_map=key_map)


def share(source: nn.Module, target: nn.Module) -> None:
    """Let a module on the meta device use another one's weights."""
    for name, parameter in source.named_parameters():
        owner, _, leaf = name.rpartition(".")
        own = nn.Parameter(parameter.data, requires_grad=False)
        setattr(target.get_submodule(owner), leaf, own)


def bind(preset: Preset, backend: KernelConfig, device: torch.device, dtype: torch.dtype) -> Ops:
    """Bind the ops of a preset's transformer.

    Raises:
        UserError: A backend that was named cannot run.
    """
    return bind_ops(backend, device=device, dtype=dtype, **preset.dit.dims)


def make_dit(
    preset: Preset,
    ops: Ops,
    *,
    reuse: bool = True,
    fp8: bool = False,
    parallel: SequenceParallel | None = None,
) -> DiT:
    """Create a transformer on the meta device; `fill` it, or let it `share` weights."""
    with torch.device("meta"):
        return DiT(preset.dit, ops, reuse=reuse, fp8=fp8, parallel=parallel)


def make_vae(
    preset: Preset,
    backend: KernelConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    reuse: bool = True,
    weights: VAE | None = None,
) -> VAE:
    """Create a VAE, ready to run.

    Args:
        preset: Sizes.
        backend: Kernel backends.
        device: Device of the VAE.
        dtype: Dtype of its weights.
        reuse: Schedule, see `VAE`.
        weights: VAE to share weights with; by default new ones.

    Raises:
        UserError: A backend that was named cannot run.
    """
    sizes = {"H": 1, "d": 4 * preset.vae.dim}
    ops = bind_ops(backend, device=device, dtype=dtype, main=preset.dit.dims, **sizes)
    with torch.device("meta"):
        vae = VAE(preset.vae, ops, reuse=reuse)
    fill(vae, dtype=dtype, device=device)
    if weights is not None:
        share(weights, vae)
    vae.prepare()
    return vae


@dataclass(frozen=True, kw_only=True)
class Given:
    """Random inputs of one step, before anything is prepared.

    Attributes:
        latent: [1, 16, T, h, w].
        constant: [1, 20, T, h, w] mask and portrait latents.
        text: [L, 4096] prompt embedding.
        image: [1, 257, 1280] image features.
        windows: [1, 33, window, layers, channels] audio features.
        timestep: [1], 0 to 1000.
    """

    latent: Tensor
    constant: Tensor
    text: Tensor
    image: Tensor
    windows: Tensor
    timestep: Tensor

    @classmethod
    def draw(cls, preset: Preset, device: torch.device, dtype: torch.dtype) -> "Given":
        """Draw the same on every device of a kind."""
        config, size = preset.dit, latent_size(preset)
        random = torch.Generator(device).manual_seed(1)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, device=device, dtype=dtype)

        window = config.audio_window, config.audio_layers, config.audio_dim
        return cls(
            latent=draw(1, config.out_dim, *size),
            constant=draw(1, config.in_dim - config.out_dim, *size),
            text=draw(PROMPT_ROWS, config.text_dim),
            image=draw(1, config.image_len, config.image_dim),
            windows=draw(1, CHUNK_FRAMES, *window),
            timestep=timesteps(STEPS, SHIFT)[:1],
        )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a step needs in addition to the latent and its modulation; see `DiT.forward`."""

    condition: Tensor
    context: list[ContextKV]
    audio: AudioContext
    norm_rope: NormRope

    @classmethod
    def of(cls, dit: DiT, given: Given) -> "Prepared":
        """Prepare it once."""
        grid = dit.token_grid(given.latent)
        return cls(
            condition=dit.prepare_condition(given.constant),
            context=dit.prepare_context(given.text, given.image),
            audio=dit.prepare_audio(given.windows, size=grid[1:]),
            norm_rope=dit.prepare_rope(grid),
        )


def own_step(dit: DiT, given: Given, call: Callable[..., Tensor] | None = None) -> Step:
    """Create a step as in a stream: everything constant is prepared in advance.

    ``call``: substitute for `DiT.forward`, such as a graph of it.
    """
    ready, step = vars(Prepared.of(dit, given)), dit.prepare_steps(given.timestep)[0]
    forward = call or dit
    return lambda latent: forward(latent, step=step, **ready)


def published_step(dit: DiT, given: Given) -> Step:
    """Create a step of the published schedule, which recomputes everything."""

    def run(latent: Tensor) -> Tensor:
        step = dit.prepare_steps(given.timestep)[0]
        flow: Tensor = dit(latent, step=step, **vars(Prepared.of(dit, given)))
        return flow

    return run

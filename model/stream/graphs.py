"""A stream's repeated calls as CUDA graphs: DiT step, decode step, encoder.

A chunk launches several thousand kernels; a graph launches all those of a call at once, which pays
off if kernels are shorter than their launches: small models, and many GPUs. Untested on a GPU.

Signatures are those of the wrapped functions, and results are fresh tensors. Graphs read the
weights in place: do not move or replace them afterwards. On several ranks, all of them capture and
replay together, over NCCL; a communicator does not count the traffic of replays.

Memory for ``14b`` at 768x448 in bf16, on top of the eager calls' peak: 236 MB for the audio's keys
and values (40 layers x 288 tokens x 2 x 5120), 7 MB for modulation and latents, 1.63 GB for the
decoder's history and as much again for the history that a step computes before copying it there.
The three graphs share the memory of their intermediate results, which is as large as the largest
graph's and is not available to anything else between the calls. Keys and values of text and image,
the conditioning's tokens and the RoPE table are read in place. At 4 TB/s a replay copies the
audio's part in about 0.1 ms, and the history in about 1 ms.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from livetalk_kernels.runtime.cuda_graph import CudaEngine, Engine, GraphedFunction
from livetalk_kernels.runtime.halo import WHOLE, Whole

from ..dit import AudioContext, DiT, StepModulation
from ..layers import ContextKV, NormRope
from ..vae import KERNEL, VAE, DecoderCache

History = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class StreamCalls:
    """The calls of a stream.

    Attributes:
        step: `DiT.forward`, or a graph of it.
        decode_step: `VAE.decode_step`, or a graph of it.
        encode: `VAE.encode`, or a graph of it.
    """

    step: Callable[..., Tensor]
    decode_step: Callable[..., Tensor]
    encode: Callable[..., Tensor]

    @classmethod
    def of(cls, dit: DiT, vae: VAE, *, cuda_graphs: bool, compiled: bool = False) -> "StreamCalls":
        """Use graphs if requested and the models are on a GPU, else the models' own methods.

        ``compiled``: torch.compile steps instead of graphs; the first step takes long.
        """
        if compiled:
            step = torch.compile(dit, dynamic=False)
            return cls(step=step, decode_step=vae.decode_step, encode=vae.encode)
        if cuda_graphs and dit.device.type == "cuda":
            return cls.graphed(dit, vae, CudaEngine(dit.device))
        return cls(step=dit, decode_step=vae.decode_step, encode=vae.encode)

    @classmethod
    def graphed(cls, dit: DiT, vae: VAE, engine: Engine) -> "StreamCalls":
        """Create graphs with one engine."""
        return cls(
            step=GraphedStep(dit, engine),
            decode_step=GraphedDecodeStep(vae, engine),
            encode=GraphedEncoder(vae, engine),
        )


@dataclass(frozen=True, kw_only=True)
class _StepConstants:
    condition: Tensor
    context: Sequence[ContextKV]
    norm_rope: NormRope


class GraphedStep:
    """`DiT.forward` as a graph.

    Latent, modulation and audio are copied. ``condition``, ``context`` and ``norm_rope`` are read
    in place, and other objects cause another capture: create them once per session
    (`work.WorkOnce`). The graphs of the two most recently used sessions are kept, with these
    objects.
    """

    def __init__(self, dit: DiT, engine: Engine) -> None:
        """Prepare; captured on the first call."""
        self._dit = dit
        self._graph = GraphedFunction(self._run, engine, name="DiT step")

    def __call__(
        self,
        latent_BCTHW: Tensor,
        *,
        condition: Tensor,
        step: StepModulation,
        context: Sequence[ContextKV],
        audio: AudioContext,
        norm_rope: NormRope,
    ) -> Tensor:
        """See `DiT.forward`.

        Raises:
            UserError: The step cannot be captured.
        """
        constants = _StepConstants(condition=condition, context=context, norm_rope=norm_rope)
        return self._graph((latent_BCTHW, step, audio), constants).clone()

    def _run(
        self, varying: tuple[Tensor, StepModulation, AudioContext], constants: _StepConstants
    ) -> Tensor:
        latent, step, audio = varying
        flow: Tensor = self._dit(
            latent,
            condition=constants.condition,
            step=step,
            context=constants.context,
            audio=audio,
            norm_rope=constants.norm_rope,
        )
        return flow


class GraphedDecodeStep:
    """`VAE.decode_step` as a graph, from the point where its state repeats.

    A stream's first three pieces (the motion latents, warmed, and the first new latent) each leave
    more history than they found, and run eagerly. From then on every convolution has its two
    frames. These are in static buffers, which the graph itself advances; the cache's entries are
    the buffers. When another cache arrives, the previous one gets copies of its entries.

    So entries *are* modified in place here: a fork of a cache that has been decoded through a graph
    must be used before that cache is.
    """

    def __init__(self, vae: VAE, engine: Engine) -> None:
        """Prepare; captured on the first call whose state repeats."""
        self._vae = vae
        self._graph = GraphedFunction(self._run, engine, name="decode step", in_place=True)
        self._owner: Callable[[], DecoderCache | None] = lambda: None  # of the buffers' contents

    def __call__(self, latent_BCTHW: Tensor, cache: DecoderCache, *, clamp: bool = True) -> Tensor:
        """See `VAE.decode_step`.

        Raises:
            UserError: It is not one latent of 16 channels, or the step cannot be captured.
        """
        if not _repeats(cache):
            return self._vae.decode_step(latent_BCTHW, cache, clamp=clamp)
        owner = self._owner()
        if owner is not None and owner is not cache:
            owner.frames = {name: frames.clone() for name, frames in owner.frames.items()}
        # Sorted: warming stores them in another order than decoding.
        varying = latent_BCTHW, dict(sorted(cache.frames.items()))
        pixels, history = self._graph(varying, (clamp, cache.halo))
        cache.frames = dict(history)
        cache.pieces += 1
        self._owner = weakref.ref(cache)
        return pixels.clone()

    def _run(
        self, varying: tuple[Tensor, History], constants: tuple[bool, Whole]
    ) -> tuple[Tensor, History]:
        latent, history = varying
        clamp, halo = constants
        cache = DecoderCache(history, pieces=KERNEL[0], halo=halo)
        pixels = self._vae.decode_step(latent, cache, clamp=clamp)
        assert cache.frames.keys() == history.keys()
        for name, frames in cache.frames.items():
            history[name].copy_(frames)
        return pixels, history


def _repeats(cache: DecoderCache) -> bool:
    """Return whether the next step leaves history of the same shapes: all that kernels use."""
    return bool(cache.frames) and all(
        frames.shape[2] == KERNEL[0] - 1 for frames in cache.frames.values()
    )


class GraphedEncoder:
    """`VAE.encode` as a graph, one per number of frames and size."""

    def __init__(self, vae: VAE, engine: Engine) -> None:
        """Prepare; captured on the first call."""
        self._vae = vae
        self._graph = GraphedFunction(self._run, engine, name="VAE encoder")

    def __call__(self, video_BCTHW: Tensor, *, halo: Whole = WHOLE) -> Tensor:
        """See `VAE.encode`.

        Raises:
            UserError: There is no frame, the size does not fit, or the encoder cannot be captured.
        """
        return self._graph(video_BCTHW, halo).clone()

    def _run(self, video_BCTHW: Tensor, halo: Whole) -> Tensor:
        return self._vae.encode(video_BCTHW, halo=halo)

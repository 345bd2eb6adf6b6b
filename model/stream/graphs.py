"""What a stream calls again and again, as CUDA graphs: DiT step, decode step, encoder.

A chunk launches some thousands of kernels; a graph launches those of one call at once, which pays
where kernels are shorter than their launches: small models, and many GPUs. Untested on a GPU.

Signatures are those of what is wrapped, and results are fresh tensors. Graphs read the weights
where they lie: do not move or replace them afterwards. On several ranks, all of them capture and
replay together, over NCCL; a communicator does not count the traffic of replays.

Memory for ``14b`` at 768x448 in bf16, besides what the eager calls need at their peak: 236 MB for
the audio's keys and values (40 layers x 288 tokens x 2 x 5120), 7 MB for modulation and latents,
1.63 GB for the decoder's history and as much again for the history that a step makes before it is
copied there. The three graphs share the memory of their intermediate results, which is as large as
that of the largest and is lent to nobody else between the calls. Keys and values of text and image,
the conditioning's tokens and the RoPE table are read where they lie. At 4 TB/s a replay copies the
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
    """What a stream calls.

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
        """Graphs where they are wanted and the models are on a GPU, else the models' own.

        ``compiled``: steps by torch.compile, instead of graphs; the first one takes long.
        """
        if compiled:
            step = torch.compile(dit, dynamic=False)
            return cls(step=step, decode_step=vae.decode_step, encode=vae.encode)
        if cuda_graphs and dit.device.type == "cuda":
            return cls.graphed(dit, vae, CudaEngine(dit.device))
        return cls(step=dit, decode_step=vae.decode_step, encode=vae.encode)

    @classmethod
    def graphed(cls, dit: DiT, vae: VAE, engine: Engine) -> "StreamCalls":
        """Graphs made by one engine."""
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
    where they lie, and other objects mean another capture: make them once per session
    (`work.WorkOnce`). The graphs of the two sessions used last are kept, with these objects.
    """

    def __init__(self, dit: DiT, engine: Engine) -> None:
        """Capture at the first call."""
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
    """`VAE.decode_step` as a graph, from the state on that repeats.

    A stream's first three pieces (the motion latents, warmed, and the first new latent) each leave
    more history than they found, and run eagerly. From then on every convolution has its two
    frames. These lie in static buffers, which the graph itself brings forward; the cache's entries
    are the buffers. When another cache comes, the one before gets copies of its entries.

    So entries *are* changed in place here: a fork of a cache that has been decoded through a graph
    must be taken on before that cache is.
    """

    def __init__(self, vae: VAE, engine: Engine) -> None:
        """Capture at the first call whose state repeats."""
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
    """Whether the next step leaves history of the same shapes: the most that a kernel looks at."""
    return bool(cache.frames) and all(
        frames.shape[2] == KERNEL[0] - 1 for frames in cache.frames.values()
    )


class GraphedEncoder:
    """`VAE.encode` as a graph, one for each number of frames and size."""

    def __init__(self, vae: VAE, engine: Engine) -> None:
        """Capture at the first call."""
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

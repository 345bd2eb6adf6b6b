"""What ranks other than 0 do: hear of sessions and chunks, and compute their part of them."""

from collections.abc import Callable

import torch

from livetalk_kernels.runtime.timeline import Timeline

from ..avatar import Avatar
from ..dit import DiT
from ..vae import VAE
from .chunk import ChunkGenerator, StreamOptions
from .graphs import StreamCalls
from .stats import CHUNK, StageClock
from .team import Team


def follow(
    dit: DiT,
    vae: VAE,
    team: Team,
    *,
    timeline: Timeline | None = None,
    calls: StreamCalls | None = None,
    ended: Callable[[int], None] = lambda count: None,
) -> None:
    """Follow rank 0's `Session` until it says ``end``.

    Args:
        dit: The transformer.
        vae: The VAE.
        team: All ranks.
        timeline: Where the stages are recorded.
        calls: CUDA graphs of the models' methods; by default the methods.
        ended: Told how many chunks are done, after each of them.

    Raises:
        NumericsError: NaN or Inf arose, on any rank; rank 0 raises the same.
        CommError: A rank is lost.
    """
    assert not team.leads
    clock = StageClock(dit.device, timeline, phase=team.phase)
    chunks: ChunkGenerator | None = None
    done = 0
    while True:
        with team.phase("wait"):
            message, data = team.hear()
        if message["what"] == "end":
            return
        if message["what"] == "session":
            chunks = None  # its memory is free before the next one takes as much
            avatar = Avatar.from_bytes(data)
            options = StreamOptions(**message["options"])
            chunks = ChunkGenerator(dit, vae, avatar, options, clock=clock, team=team, calls=calls)
            continue
        assert message["what"] == "chunk" and chunks is not None
        with clock.timeline.range(CHUNK):
            windows = team.share(torch.empty(message["windows"], device=dit.device))
            for _ in chunks.chunk(windows, frames=message["frames"], last=message["last"]):
                pass  # rank 0 has the frames
        clock.collect()
        done += 1
        ended(done)

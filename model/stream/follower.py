"""Follower loop: other ranks receive sessions and chunks from rank 0 and compute their share."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from livetalk_kernels.errors import NumericsError
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
    """Follow rank 0's sessions until it sends ``end``.

    NaN or Inf in a chunk, on any rank, ends its session; rank 0 raises the error.

    Args:
        dit: The transformer.
        vae: The VAE.
        team: All ranks.
        timeline: Records the stages.
        calls: CUDA graphs of the models' methods; by default the methods.
        ended: Called after each chunk with the number of chunks done, over all sessions.

    Raises:
        CommError: A rank is lost.
    """
    assert not team.leads
    clock = StageClock(dit.device, timeline, phase=team.phase)
    sessions: dict[int, ChunkGenerator] = {}
    done = 0
    while True:
        with team.phase("wait"):
            message, data = team.receive()
        what = message["what"]
        if what == "end":
            return
        number = message["session"]
        if what == "session":
            avatar, options = Avatar.from_bytes(data), StreamOptions(**message["options"])
            sessions[number] = ChunkGenerator(
                dit, vae, avatar, options, clock=clock, team=team, calls=calls
            )
            del avatar, data
        elif what == "close":
            sessions.pop(number, None)  # already gone if its chunk failed
        else:
            assert what == "chunk"
            try:
                _follow_chunk(sessions[number], message, team, clock)
            except NumericsError:
                sessions.pop(number)
                continue
            done += 1
            ended(done)


def _follow_chunk(
    chunks: ChunkGenerator, message: Mapping[str, Any], team: Team, clock: StageClock
) -> None:
    with clock.timeline.range(CHUNK):
        windows = team.share(torch.empty(message["windows"], device=chunks.device))
        for _ in chunks.chunk(windows, frames=message["frames"], last=message["last"]):
            pass  # rank 0 has the frames
    clock.collect()

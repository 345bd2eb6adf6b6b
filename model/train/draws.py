"""Random numbers by a counter: each depends on what it is for, and on nothing drawn before it.

What all samples of an update share (which chunk learns, where it leaves the sampler, at which time
the scores are compared) is drawn by update and micro-batch, without the rank, so ranks agree with
no word between them. What belongs to a sample is drawn by the sample's index, so any number of
ranks makes the same global batch, and a resumed run goes on with the same numbers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Draws:
    """All randomness of a run.

    Attributes:
        seed: Seed of the run.
    """

    seed: int

    def below(self, count: int, purpose: str, *, step: int, micro: int = 0) -> int:
        """A number from 0 to ``count - 1`` for a whole micro-batch, on all ranks the same.

        Args:
            count: How many there are to choose from.
            purpose: What for; another word gives other numbers.
            step: Number of the update.
            micro: Number of the micro-batch in it.
        """
        generator = self._generator(purpose, step, micro)
        return int(torch.randint(count, (), generator=generator))

    def shared_uniform(self, purpose: str, *, step: int, micro: int = 0) -> Tensor:
        """A uniform number for a whole micro-batch, float32 [1]; arguments as of `below`."""
        return torch.rand(1, generator=self._generator(purpose, step, micro))

    def uniform(self, purpose: str, *, step: int, samples: Sequence[int]) -> Tensor:
        """Uniform number of each sample, float32 [B].

        Args:
            purpose: What for; another word gives other numbers.
            step: Number of the update.
            samples: Indices in the global batch.
        """
        return torch.cat(
            [torch.rand(1, generator=self._generator(purpose, step, index)) for index in samples]
        )

    def noise(
        self, purpose: str, shape: Sequence[int], *, step: int, samples: Sequence[int]
    ) -> Tensor:
        """Standard normal numbers of each sample, float32 [B, *shape], on the CPU.

        Args:
            purpose: What for; another word gives other numbers.
            shape: Of one sample.
            step: Number of the update.
            samples: Indices in the global batch.
        """
        return torch.stack(
            [
                torch.randn(tuple(shape), generator=self._generator(purpose, step, index))
                for index in samples
            ]
        )

    def _generator(self, purpose: str, *place: int) -> torch.Generator:
        key = "/".join(map(str, (self.seed, purpose, *place)))
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

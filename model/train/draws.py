"""Counter-based random numbers: each depends on its purpose, and on nothing drawn before.

What all samples of an update share (which chunk learns, where it leaves the sampler, at which time
scores are compared) is drawn by update and micro-batch, without the rank, so ranks agree without
communicating. What belongs to a sample is drawn by the sample's index, so any number of ranks makes
the same global batch, and a resumed run continues with the same numbers.
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
        """Draw a number from 0 to ``count - 1`` for a whole micro-batch, equal on all ranks.

        Args:
            count: Number of choices.
            purpose: Purpose; another word gives other numbers.
            step: Index of the update.
            micro: Index of the micro-batch in it.
        """
        generator = self._generator(purpose, step, micro)
        return int(torch.randint(count, (), generator=generator))

    def shared_uniform(self, purpose: str, *, step: int, micro: int = 0) -> Tensor:
        """Draw a uniform number for a whole micro-batch, float32 [1]; arguments as for `below`."""
        return torch.rand(1, generator=self._generator(purpose, step, micro))

    def uniform(self, purpose: str, *, step: int, samples: Sequence[int]) -> Tensor:
        """Draw a uniform number for each sample, float32 [B].

        Args:
            purpose: Purpose; another word gives other numbers.
            step: Index of the update.
            samples: Indices in the global batch.
        """
        return torch.cat(
            [torch.rand(1, generator=self._generator(purpose, step, index)) for index in samples]
        )

    def noise(
        self, purpose: str, shape: Sequence[int], *, step: int, samples: Sequence[int]
    ) -> Tensor:
        """Draw standard normal numbers for each sample, float32 [B, *shape], on the CPU.

        Args:
            purpose: Purpose; another word gives other numbers.
            shape: Shape per sample.
            step: Index of the update.
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

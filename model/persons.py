"""Two people in one picture: assigns tokens to voices.

From self-attention's queries and the keys of the first latent frame, every token gets a weight for
each of three regions (person 1, person 2, the rest). The region with the largest weight determines
the token's position on a line; audio keys have fixed positions on the same line, so a 1-D rotation
makes a token attend to the nearer voice.

Source: SoulX-FlashTalk (arXiv 2512.23379), which adopts it from MultiTalk (arXiv 2505.22647).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .rope import rotate_1d

REGIONS = 3
# Positions on the line: those of each region's tokens, and of each voice's keys.
PERSON_RANGE = ((0.0, 4.0), (20.0, 24.0))
REST_POSITION = 12.0
VOICE_POSITION = (2.0, 22.0)
# In a matrix product this wide, a CPU computes all rows alike, however many there are.
_WIDTH = 16


def region_weights(masks: Tensor, rows: int, columns: int) -> Tensor:
    """Compute averaging weights of the first frame's tokens, per region.

    Args:
        masks: [3, height, width] pixels, above 0 inside. Order: person 1, person 2, the rest.
        rows: Token rows of a latent frame.
        columns: Token columns of a latent frame.

    Returns:
        float32 [3, rows*columns]; each row sums to 1 (or is 0 for an empty region).
    """
    small = F.interpolate(masks[None].float(), size=(rows, columns), mode="nearest")[0]
    inside = (small > 0).flatten(1).float()
    return inside / inside.sum(dim=1, keepdim=True).clamp(min=1)


def region_map(q_LHd: Tensor, k_SHd: Tensor, weights_RS: Tensor) -> Tensor:
    """Compute how much each token attends to each region of the first frame.

    ``map[r, l] = mean over heads of sum_s softmax_s(q_l . k_s / sqrt(d)) weights[r, s]``

    Args:
        q_LHd: [L, H, d] queries, after norm and RoPE.
        k_SHd: [S, H, d] keys of the first latent frame.
        weights_RS: float32 [3, S] from `region_weights`.

    Returns:
        float32 [3, L].
    """
    heads = q_LHd.shape[1]
    # The published map is the mean of two half-head means; they omit an odd last head.
    used = heads if heads == 1 else heads - heads % 2
    scale = q_LHd.shape[-1] ** -0.5
    regions = weights_RS.shape[0]
    weights_SP = F.pad(weights_RS, (0, 0, 0, -regions % _WIDTH)).T
    total = q_LHd.new_zeros((q_LHd.shape[0], weights_SP.shape[1]), dtype=torch.float32)
    for head in range(used):  # one head at a time bounds the memory to L*S floats
        scores = (q_LHd[:, head].float() * scale) @ k_SHd[:, head].float().T
        total += scores.softmax(dim=-1) @ weights_SP
    return total[:, :regions].T / used


def token_positions(map_RL: Tensor, lowest_R: Tensor, highest_R: Tensor) -> Tensor:
    """Compute the position of every token on the line.

    Args:
        map_RL: float32 [3, L] from `region_map`, for some or all tokens.
        lowest_R: Each region's minimum over all tokens.
        highest_R: Each region's maximum over all tokens.

    Returns:
        float32 [L].
    """
    candidates = []
    for region, (low, high) in enumerate(PERSON_RANGE):
        span = highest_R[region] - lowest_R[region]
        place = (map_RL[region] - lowest_R[region]) / (span + 1e-8)
        candidates.append(place * (high - low) + low)
    candidates.append(torch.full_like(map_RL[2], REST_POSITION))
    winner = map_RL.argmax(dim=0, keepdim=True)
    return torch.stack(candidates).gather(0, winner)[0]


def place_voices(k_FSHd: Tensor, tokens_per_person: int) -> Tensor:
    """Rotate each person's audio keys to that person's position.

    Args:
        k_FSHd: [F, S, H, d]; S holds the persons' tokens one after the other.
        tokens_per_person: Audio tokens per person (32).

    Returns:
        [F, S, H, d] in the same dtype.
    """
    frames, tokens = k_FSHd.shape[:2]
    place = torch.tensor(VOICE_POSITION, device=k_FSHd.device).repeat_interleave(tokens_per_person)
    assert place.numel() == tokens
    return rotate_1d(k_FSHd.flatten(0, 1), place.repeat(frames)).view_as(k_FSHd)

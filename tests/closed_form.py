"""What a step takes, by formula: the check of the dry run that runs none of the model's code.

Sources: the table of ``livetalk_kernels/runtime/README.md``; DeepSpeed-Ulysses (arXiv 2309.14509);
ring attention (arXiv 2310.01889).
"""

from livetalk_kernels.runtime.mesh import Mesh, shares, starts
from livetalk_model.config import DiTConfig

SCALE = 4  # bytes, of a token and head in FP8


def step_flops(config: DiTConfig, tokens: int, frames: int, text: int) -> dict[str, int]:
    """Count the FLOPs of a step, a chunk's audio and a session's start with one timestep."""
    dim, layers, patch = config.dim, config.num_layers, 4
    keys = tokens + text + config.image_len + config.context_tokens
    block = tokens * (8 * dim**2 + 2 * dim * config.ffn_dim + 2 * keys * dim)
    edges = tokens * dim * patch * 2 * config.out_dim
    hidden, width = config.intermediate_dim, config.context_tokens * config.output_dim
    entries = config.audio_window + (frames - 1) * (config.audio_window + config.vae_scale - 1)
    audio = hidden * (entries * config.audio_features + frames * (hidden + width))
    context = text * (config.text_dim * dim + dim**2)
    context += config.image_len * config.image_dim * (config.image_dim + dim)
    context += layers * (text + config.image_len) * 2 * dim**2
    constant = tokens * dim * patch * (config.in_dim - config.out_dim)
    time = config.freq_dim * dim + 7 * dim**2
    return {
        "step": 2 * (layers * block + edges),
        "chunk": 2 * (audio + layers * frames * width * 2 * dim),
        "session": 2 * (context + constant + time),
    }


def step_bytes(
    mesh: Mesh,
    rank: int,
    *,
    tokens: int,
    heads: int,
    head_dim: int,
    itemsize: int,
    layers: int,
    outputs: int,
    first_rows: int = 0,
    regions: int = 0,
    fp8: bool = False,
) -> dict[str, int]:
    """Count the bytes a rank sends in a step, by kind; ``outputs``: final fp32 values per token."""
    sizes, others = shares(tokens, mesh.world), mesh.world - 1
    block, place = divmod(rank, mesh.ulysses)
    blocks = [sum(sizes[at : at + mesh.ulysses]) for at in range(0, mesh.world, mesh.ulysses)]
    own, own_heads = sizes[rank], shares(heads, mesh.ulysses)[place]
    row = head_dim * itemsize
    to = 3 * own * (heads - own_heads) * (head_dim + SCALE if fp8 else row)
    back = (blocks[block] - own) * own_heads * row
    passed_on = tokens - blocks[(block + 1) % mesh.ring]  # every block but the next rank's own
    begin = starts(sizes)[rank]
    found = {
        "all_to_all": layers * (to + back),
        "ring": layers * 2 * own_heads * passed_on * row if mesh.ring > 1 else 0,
        "first_rows": layers * others * min(max(first_rows - begin, 0), own) * heads * row,
        "extremes": layers * others * 2 * regions * 4,
        "gather": others * own * outputs * 4,
    }
    return {kind: count for kind, count in found.items() if count}


def halo_pixels(rows: int, columns: int, neighbours: tuple[int, int], border: int = 1) -> int:
    """Count the pixels a slice sends for one 3x3 convolution: vertically, and at its sides."""
    vertical, horizontal = neighbours
    corners = vertical * horizontal * border**2
    return border * (vertical * columns + horizontal * rows) + corners

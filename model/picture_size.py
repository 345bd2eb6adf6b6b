"""Which picture sizes the model takes."""

from livetalk_kernels.errors import UserError

STEP = 16  # sides are multiples of this: 8 pixels a latent, 2 latents a token
MAX_SIDE = 4096  # pixels; at 4096 x 4096 a chunk is 590,000 tokens, far beyond any training


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size, if the model can make pictures of it.

    Raises:
        UserError: Height or width is not a positive multiple of 16, or beyond 4096.
    """
    height, width = size
    for name, pixels in (("height", height), ("width", width)):
        if pixels <= 0 or pixels % STEP:
            near = max(STEP, round(pixels / STEP) * STEP)
            raise UserError(
                f"--size {height}x{width}: the {name} must be a multiple of {STEP}; use {near}"
            )
        if pixels > MAX_SIDE:
            raise UserError(
                f"--size {height}x{width}: the {name} may be {MAX_SIDE} at most; choose less"
            )
    return height, width

"""What a self-trained model declares about its use: the entry ``livetalk`` in ``config.json``.

Published checkpoints have none: their picture size is the published one, and prompt and image
features come from encoders.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import Range, build, is_file

from .config import DiTConfig, read_config
from .picture_size import MAX_SIDE, STEP

ENTRY = "livetalk"
RUN_FILE = "training.json"
"""File that identifies a folder as a training run."""
_MOST_ZEROS = 1 << 24
_AGAIN = "write it again with 'livetalk train KIND --output DIR --resume'"

Side = Annotated[int, Range(STEP, MAX_SIDE)]


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """What a self-trained model declares about its use.

    Attributes:
        version: Version of this entry.
        size: Default picture size (height, width) in pixels.
        prompt_zeros: Rows of zeros that replace the prompt's embedding; 0 with a text encoder.
        image_zeros: Whether zeros replace the image encoder's features.
        portrait_db: PSNR at which its VAE reconstructs portraits of its data, the worst of
            several; None if unknown.

    Raises:
        ValueError: A side is not a multiple of 16.
    """

    version: Literal[1] = 1
    size: tuple[Side, Side]
    prompt_zeros: Annotated[int, Range(0, 1 << 16)] = 0
    image_zeros: bool = False
    portrait_db: Annotated[float, Range(0, 200)] | None = None

    def __post_init__(self) -> None:
        """Reject impossible sizes."""
        if any(side % STEP for side in self.size):
            raise ValueError(f"size is {list(self.size)}, not multiples of {STEP}")

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read the entry of a model's ``config.json``.

        Args:
            path: The file.

        Returns:
            The entry; None for a published model.

        Raises:
            UserError: The file or the entry is invalid, or the run is unfinished or older than
                this entry.
        """
        run = is_file(path.parent / RUN_FILE)
        if run and not is_file(path):
            raise UserError(
                f"{path}: missing; the run has no model yet: continue it with --resume, or give "
                "the folder of a finished 'livetalk train teacher' or 'livetalk train distill'"
            )
        values = read_config(path)
        if ENTRY not in values:
            if run:
                raise UserError(f"{path}: does not say its picture size ({ENTRY}); {_AGAIN}")
            return None
        try:
            own = build(cls, values[ENTRY], ENTRY)
            own._check_room(DiTConfig.from_json(path))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{path}: {error}; {_AGAIN}") from None
        return own

    def entry(self) -> Mapping[str, Any]:
        """Build the contents for ``config.json``."""
        return {ENTRY: dict(vars(self))}

    def _check_room(self, config: DiTConfig) -> None:
        """Reject constants that a damaged file makes huge.

        Raises:
            ValueError: They are too large for any model, or for this one.
        """
        if self.prompt_zeros > config.text_len:
            raise ValueError(
                f"{ENTRY}.prompt_zeros is {self.prompt_zeros}, text_len {config.text_len} the most"
            )
        zeros = {
            "prompt_zeros": self.prompt_zeros * config.text_dim,
            "image_zeros": self.image_zeros * config.image_len * config.image_dim,
        }
        for name, count in zeros.items():
            if count > _MOST_ZEROS:
                raise ValueError(f"{ENTRY}.{name}: means {count} zeros, {_MOST_ZEROS} is the most")

"""The errors that livetalk raises on purpose."""

from .lines import one_line


class UserError(ValueError):
    """Bad input from the user: one line that says what is wrong, which input, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        """Make one line of the message, whatever names are in it (see `lines.one_line`)."""
        super().__init__(one_line(message))


class NumericsError(RuntimeError):
    """A tensor holds NaN or Inf.

    Attributes:
        stage: The stage of the pipeline that produced it, for example ``"DiT step 2"``.
    """

    def __init__(self, stage: str, detail: str) -> None:
        """Build the message from the stage and what was found there."""
        super().__init__(f"{stage}: {detail}")
        self.stage = stage


class CommError(RuntimeError):
    """A message between ranks did not get through, most often because one of them is gone."""

"""The errors that livetalk raises on purpose."""

from .lines import one_line


class UserError(ValueError):
    """Bad user input: one line that says what is wrong, which input, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        """Collapse the message to one line, whatever names it holds (see `lines.one_line`)."""
        super().__init__(one_line(message))


class NumericsError(RuntimeError):
    """A tensor holds NaN or Inf.

    Attributes:
        stage: Pipeline stage that produced it, for example ``"DiT step 2"``.
    """

    def __init__(self, stage: str, detail: str) -> None:
        """Build the message from the stage and what was found there."""
        super().__init__(f"{stage}: {detail}")
        self.stage = stage


class CommError(RuntimeError):
    """A message between ranks was not delivered, usually because one of them is gone."""

"""Files that come in, with one-line errors."""

from pathlib import Path

from .errors import UserError


def check_input(path: Path | str, what: str) -> Path:
    """Check that a file is there, is a file, can be read and is not empty.

    Args:
        path: The file.
        what: What it is to the user, for example ``"audio"``; used in the messages.

    Returns:
        The path.

    Raises:
        UserError: It is missing, a folder, empty, or may not be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what} file; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name the {what} file in it") from None
    except PermissionError:
        raise UserError(f"{path}: may not be read; change its permissions") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if not first:
        raise UserError(f"{path}: the {what} file is empty; record or export it again")
    return path

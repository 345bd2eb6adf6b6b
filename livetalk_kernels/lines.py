"""Makes single printable lines of text that came from a user or a file."""

from collections.abc import Iterable

LONGEST = 2000
"""Maximum characters in a line; a path may take a few hundred."""
LISTED = 8
"""Maximum names in a list."""

_LONGEST_NAME = 200
_JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji


def one_line(text: str, longest: int = LONGEST) -> str:
    r"""Make a text a single line, whatever it contains.

    Control characters (line ends, terminal escape sequences, marks that reverse the direction of
    writing), undecodable bytes and everything else invisible are escaped as ``\n`` or ``\x1b``;
    the middle of a long text is left out. A line that is fine is unchanged.

    Args:
        text: Text to show.
        longest: Maximum characters of the result.
    """
    if len(text) > longest:  # before escaping: what matters is at the ends
        text = _shortened(text, longest)
    if text.isprintable():
        return text
    return _shortened("".join(map(_visible, text)), longest)


def brief(error: BaseException, longest: int = 300) -> str:
    """Format an error in one line: its type, and the beginning of its text."""
    text = " ".join(str(error).split())[:longest]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def list_keys(keys: Iterable[str]) -> str:
    """List at most eight names in one line, and how many more there are."""
    names = list(keys)
    more = len(names) - LISTED
    shown = ", ".join(one_line(name, _LONGEST_NAME) for name in names[:LISTED])
    return shown + (f", and {more} more" if more > 0 else "")


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = longest // 3  # where messages say what to do
    return f"{text[: longest - end - 5]} ... {text[-end:]}"


def _visible(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()

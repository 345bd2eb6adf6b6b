"""Lines for people, of what a user or a file named."""

from collections.abc import Iterable

LONGEST = 2000
"""Characters of a line; a path may take a few hundred."""
LISTED = 8
"""Names in a list."""

_LONGEST_NAME = 200
_JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji


def one_line(text: str, longest: int = LONGEST) -> str:
    r"""Make one line of a text, whatever is in it.

    Control characters (line ends, escape sequences of terminals, those that turn the direction of
    writing), bytes of no encoding and all else that cannot be seen become escapes such as ``\n``
    and ``\x1b``; the middle of a long text is left out. A line that is fine stays as it is.

    Args:
        text: What is to be shown.
        longest: Characters of the result, at most.
    """
    if len(text) > longest:  # before it is escaped: what matters is at the ends
        text = _shortened(text, longest)
    if text.isprintable():
        return text
    return _shortened("".join(map(_visible, text)), longest)


def brief(error: BaseException, longest: int = 300) -> str:
    """Say in one line what went wrong: the error's kind, and the beginning of its text."""
    text = " ".join(str(error).split())[:longest]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def list_keys(keys: Iterable[str]) -> str:
    """At most eight names in one line, and how many more there are."""
    names = list(keys)
    more = len(names) - LISTED
    shown = ", ".join(one_line(name, _LONGEST_NAME) for name in names[:LISTED])
    return shown + (f", and {more} more" if more > 0 else "")


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = longest // 3  # where a message says what to do
    return f"{text[: longest - end - 5]} ... {text[-end:]}"


def _visible(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that is not in UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()

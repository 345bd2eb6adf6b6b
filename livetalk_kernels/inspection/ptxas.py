"""Parses what ptxas prints with ``-v``."""

import re
from dataclasses import dataclass

_FUNCTION = re.compile(
    r"Function properties for (\S+)\s+\d+ bytes stack frame, "
    r"(\d+) bytes spill stores, (\d+) bytes spill loads"
)
_MESSAGE = re.compile(r"^ptxas\S*\s+(info|warning)\s*:\s*(\S.*)$", re.MULTILINE)
_NUMBERED = re.compile(r"\(C\d+\)")  # advice: "(C7510) Potential Performance Loss: ..."


@dataclass(frozen=True, kw_only=True)
class Log:
    """Messages of ptxas.

    Attributes:
        spills: Function -> bytes of spill stores and spill loads.
        warnings: Warnings and numbered advice, once each.
    """

    spills: dict[str, tuple[int, int]]
    warnings: tuple[str, ...]

    def spilled(self) -> tuple[int, int]:
        """Sum the bytes of spill stores and of spill loads over all functions."""
        return (
            sum(stores for stores, _ in self.spills.values()),
            sum(loads for _, loads in self.spills.values()),
        )

    def of(self, function: str) -> "Log":
        """Select the messages about one function, and warnings that name no other."""
        others = [f"'{name}'" for name in self.spills if name != function]
        return Log(
            spills={name: spill for name, spill in self.spills.items() if name == function},
            warnings=tuple(
                text for text in self.warnings if not any(name in text for name in others)
            ),
        )


def parse(log: str) -> Log:
    """Parse a log of one or several functions."""
    spills = {name: (int(s), int(loads)) for name, s, loads in _FUNCTION.findall(log)}
    texts = (
        text.strip()
        for level, text in _MESSAGE.findall(log)
        if level == "warning" or _NUMBERED.match(text)
    )
    return Log(spills=spills, warnings=tuple(dict.fromkeys(texts)))

"""Settings of a run: one TOML file, written back with every default filled in."""

import dataclasses
import json
import math
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import Range, build, read_text
from livetalk_kernels.lines import list_keys
from livetalk_kernels.outputs import write_text

from .config import Distillation, Teaching

RESOLVED = "run.toml"  # in a run's folder
NOTHING = "none"  # TOML has no null

_LARGEST = 2.0**53
Positive = Annotated[int, Range(1, _LARGEST)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a run depends on, besides its data and what it starts from.

    Attributes:
        seed: Of all random numbers.
        steps: Updates.
        batch: Samples of an update, over all ranks.
        accumulate: Micro-batches that an update is made of.
        optimizer: ``adamw``, or ``muon`` for matrices and AdamW for the rest (see `muon`).
        learning_rate: Of the optimiser, at its highest.
        critic_rate: The same of the fake score.
        warm_up: Share of the updates, at the begin, in which the rates rise from 0.
        cool_down: Share of the updates, at the end, in which they fall to 0, as half a cosine does.
        weight_decay: Of the optimiser.
        betas: Of AdamW.
        max_norm: Most of a gradient's norm.
        average: Part of the averaged weights that stays in an update; 0: no average is kept.
        save_every: Updates between two checkpoints.
        record_every: Updates between two lines of metrics.
        teaching: How stage 1 teaches.
        distillation: How stage 2 teaches.

    Raises:
        UserError: The micro-batches do not share the batch evenly.
    """

    steps: Positive
    seed: Annotated[int, Range(0, _LARGEST)] = 0
    batch: Positive = 32
    accumulate: Positive = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: Share = 2e-6
    critic_rate: Share = 4e-7
    warm_up: Share = 0.0
    cool_down: Share = 0.0
    weight_decay: Share = 0.01
    betas: tuple[Share, Share] = (0.9, 0.99)
    max_norm: Annotated[float, Range(0, _LARGEST)] = 1.0
    average: Share = 0.0
    save_every: Positive = 100
    record_every: Positive = 1
    teaching: Teaching = field(default_factory=Teaching)
    distillation: Distillation = field(default_factory=Distillation)

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if self.batch % self.accumulate:
            raise UserError(
                f"batch = {self.batch}: does not part into accumulate = {self.accumulate} equal "
                "micro-batches; change one of them"
            )

    @property
    def micro_batch(self) -> int:
        """Samples of a micro-batch, over all ranks."""
        return self.batch // self.accumulate

    def check_ranks(self, count: int) -> None:
        """Refuse numbers of ranks that cannot share a micro-batch.

        Raises:
            UserError: They cannot.
        """
        if self.micro_batch % count:
            raise UserError(
                f"batch = {self.batch}, accumulate = {self.accumulate}: {count} ranks cannot share "
                f"a micro-batch of {self.micro_batch} evenly; change one of them"
            )

    def rate_factor(self, step: int) -> float:
        """Part of the learning rates that an update has, 0 to 1.

        Args:
            step: Number of the update, from 0.
        """
        rising = (step + 1) / (self.warm_up * self.steps) if self.warm_up else 1.0
        falling = (self.steps - step) / (self.cool_down * self.steps) if self.cool_down else 1.0
        return min(1.0, rising) * (1 - math.cos(math.pi * min(1.0, falling))) / 2

    @classmethod
    def read(cls, path: Path | str) -> "Run":
        """Read settings; what is left out keeps its default.

        Raises:
            UserError: The file is missing or no TOML, or a setting is unknown or no good.
        """
        try:
            values = tomllib.loads(read_text(path, "settings"))
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise UserError(f"{path}: is no TOML ({error}); mend that line") from None
        unknown = sorted(_unknown(cls, values))
        if unknown:
            raise UserError(
                f"{path}: unknown settings ({list_keys(unknown)}); a run's own {RESOLVED} lists all"
            )
        try:
            return build(cls, _with_nothing(values))
        except ValueError as error:
            raise UserError(f"{path}: {error}; mend it") from None

    def check_resumed(self, path: Path | str) -> None:
        """Refuse to go on with other settings than a run was begun with.

        How long it is, and how often it saves and records, may change; the rates then follow the
        new length.

        Args:
            path: What `write` has left of it.

        Raises:
            UserError: The file is no good, or a setting differs.
        """
        free = {name: getattr(self, name) for name in ("steps", "save_every", "record_every")}
        begun = dataclasses.replace(Run.read(path), **free)
        for field_ in dataclasses.fields(self):
            was, now = getattr(begun, field_.name), getattr(self, field_.name)
            if was != now:
                raise UserError(
                    f"{path}: the run was begun with {field_.name} = {was}, not {now}; resume with "
                    "its own settings, or begin another run"
                )

    def write(self, path: Path | str) -> None:
        """Write all settings, as `read` takes them.

        Raises:
            UserError: The file cannot be written.
        """
        write_text(path, "\n".join(_lines(self)) + "\n")


def _unknown(kind: type, values: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Names that a dataclass does not have, in nested ones as well."""
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            yield where + name
        elif dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            yield from _unknown(typing.cast(type, hints[name]), value, f"{where}{name}.")


def _with_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_nothing(entry) for name, entry in value.items()}
    return None if value == NOTHING else value


def _lines(settings: Any, table: str = "") -> Iterator[str]:
    """Lines of TOML: a table's own values first, then the tables within."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    inner = {name: value for name, value in values.items() if dataclasses.is_dataclass(value)}
    if table:
        yield ""
        yield f"[{table}]"
    for name, value in values.items():
        if name not in inner:
            yield f"{name} = {_literal(value)}"
    for name, value in inner.items():
        yield from _lines(value, f"{table}.{name}" if table else name)


def _literal(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return json.dumps(NOTHING if value is None else value)  # of these, JSON's form is TOML's

"""Settings of a run: one TOML file, written back with all defaults filled in."""

import dataclasses
import json
import math
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
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
    """Everything a run depends on, except its data and initial weights.

    Attributes:
        seed: Seed of all random numbers.
        steps: Number of updates.
        batch: Samples per update, over all ranks.
        accumulate: Micro-batches per update.
        optimizer: ``adamw``; ``adamw8bit``, whose states take a quarter of the memory (torchao);
            or ``muon`` for matrices and AdamW for the rest (see `muon`).
        learning_rate: Peak learning rate of the optimiser.
        critic_rate: The same for the fake score.
        warm_up: Fraction of the updates, at the start, during which rates rise from 0.
        cool_down: Fraction of the updates, at the end, during which they fall to 0 as half a
            cosine.
        weight_decay: Weight decay of the optimiser.
        betas: AdamW's betas.
        max_norm: Maximum norm of a gradient.
        average: Decay of the exponential moving average of weights; 0 to keep no average.
        save_every: Updates between two checkpoints.
        record_every: Updates between two lines of metrics.
        teaching: How stage 1 teaches.
        distillation: How stage 2 teaches.

    Raises:
        UserError: The micro-batches do not divide the batch evenly.
    """

    steps: Positive
    seed: Annotated[int, Range(0, _LARGEST)] = 0
    batch: Positive = 32
    accumulate: Positive = 1
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
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
        """Check what the types do not express."""
        if self.batch % self.accumulate:
            raise UserError(
                f"batch = {self.batch}: does not part into accumulate = {self.accumulate} equal "
                "micro-batches; change one of them"
            )

    @property
    def micro_batch(self) -> int:
        """Samples per micro-batch, over all ranks."""
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
        """Compute an update's fraction of the peak learning rates, 0 to 1.

        Args:
            step: Index of the update, from 0.
        """
        rising = (step + 1) / (self.warm_up * self.steps) if self.warm_up else 1.0
        falling = (self.steps - step) / (self.cool_down * self.steps) if self.cool_down else 1.0
        return min(1.0, rising) * (1 - math.cos(math.pi * min(1.0, falling))) / 2

    @classmethod
    def read(cls, path: Path | str, base: "Run | None" = None) -> "Run":
        """Read settings.

        Args:
            path: The file.
            base: Has the settings that the file omits; None for the defaults of this class.

        Raises:
            UserError: The file is missing or not TOML, or a setting is unknown or invalid.
        """
        try:
            values = tomllib.loads(read_text(path, "settings"))
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise UserError(f"{path}: is not valid TOML ({error}); fix that line") from None
        unknown = sorted(_unknown(cls, values))
        if unknown:
            raise UserError(
                f"{path}: unknown settings ({list_keys(unknown)}); a run's own {RESOLVED} lists all"
            )
        given = {} if base is None else asdict(base)
        try:
            return build(cls, _over(given, _with_nothing(values)))
        except ValueError as error:
            raise UserError(f"{path}: {error}; fix it") from None

    def check_resumed(self, path: Path | str) -> None:
        """Refuse to resume with settings other than those the run was begun with.

        Its length, and how often it saves and records, may change; the rates then follow the new
        length.

        Args:
            path: File that `write` has left.

        Raises:
            UserError: The file is invalid, or a setting differs.
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
        """Write all settings in the form that `read` takes.

        Raises:
            UserError: The file cannot be written.
        """
        write_text(path, "\n".join(_lines(self)) + "\n")


def _unknown(kind: type, values: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """List names that a dataclass lacks, including nested ones."""
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            yield where + name
        elif dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            yield from _unknown(typing.cast(type, hints[name]), value, f"{where}{name}.")


def _over(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace values, also those in nested tables, one by one."""
    nested = {
        name: _over(base[name], value)
        for name, value in values.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return {**base, **values, **nested}


def _with_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_nothing(entry) for name, entry in value.items()}
    return None if value == NOTHING else value


def _lines(settings: Any, table: str = "") -> Iterator[str]:
    """Format as lines of TOML: a table's own values first, then nested tables."""
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
    return json.dumps(NOTHING if value is None else value)  # for these, JSON is valid TOML

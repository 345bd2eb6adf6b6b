"""What is asked of a training: which one, from what, with which settings."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from livetalk_kernels.errors import UserError

from .config import History
from .data.clips import check_learnable
from .demo import Kind, default_run
from .loop.training import (
    AUDIO_SOURCE,
    START_SOURCE,
    TEACHER_SOURCE,
    VAE_SOURCE,
    About,
    read_folder,
)
from .settings import Run

SOURCES: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "vae": (),
        "audio": (),
        "teacher": (VAE_SOURCE, AUDIO_SOURCE, START_SOURCE),
        "distill": (VAE_SOURCE, AUDIO_SOURCE, TEACHER_SOURCE),
    }
)
"""Earlier results that a training builds on."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A training as it is asked for: a new one, or the rest of one.

    Attributes:
        kind: What to train.
        output: The run's folder.
        data: The clips; None for those that the run was begun with.
        sources: Name -> folder of earlier results.
        resume: Whether to resume the run.
        config: Settings file; None for the training's own recipe.
        steps: Total updates; None for those of the settings.
        chunks: K of a distillation; None for that of the settings.
        history: What precedes its chunk for the teacher; None for that of the settings.
    """

    kind: Kind
    output: Path
    data: Path | None = None
    sources: Mapping[str, Path]
    resume: bool = False
    config: Path | None = None
    steps: int | None = None
    chunks: int | None = None
    history: History | None = None

    def resolve(self) -> tuple[About, Run]:
        """Determine what the run is about, and its settings.

        Raises:
            UserError: Options conflict, the clips are not for training, or the run's folder or a
                file is invalid.
        """
        self._check_sources()
        about, run = self._resumed() if self.resume else self._new()
        check_learnable(Path(about.data))
        if self.steps is not None:
            run = dataclasses.replace(run, steps=self.steps)
        return about, self._with_method(run)

    def _check_sources(self) -> None:
        for name, path in self.sources.items():
            if name not in SOURCES[self.kind]:
                users = " and ".join(f"'train {kind}'" for kind in SOURCES if name in SOURCES[kind])
                raise UserError(f"--{name.replace('_', '-')} {path}: is for {users}; drop it here")

    def _new(self) -> tuple[About, Run]:
        if self.data is None:
            raise UserError(
                "--data: missing; make clips with 'livetalk dataset --synthetic 256 --output DIR'"
            )
        begins_as = self.sources.get(START_SOURCE) or self.sources.get(TEACHER_SOURCE)
        run = default_run(self.kind, begins_as)
        if self.config is not None:
            run = Run.read(self.config, run)
        return About(kind=self.kind, data=str(self.data), sources=self._named()), run

    def _resumed(self) -> tuple[About, Run]:
        if self.config is not None:
            raise UserError(f"--config {self.config}: a resumed run has its own settings")
        about, run = read_folder(self.output)
        if about.kind != self.kind:
            raise UserError(f"{self.output}: is a run of 'train {about.kind}'; resume it as that")
        data = about.data if self.data is None else str(self.data)
        return dataclasses.replace(
            about, data=data, sources={**about.sources, **self._named()}
        ), run

    def _with_method(self, run: Run) -> Run:
        wanted: dict[str, Any] = {"chunks": self.chunks, "history": self.history}
        given = {name: value for name, value in wanted.items() if value is not None}
        for name, value in given.items():
            if self.kind != "distill" or self.resume:
                raise UserError(f"--{name} {value}: is for a new run of 'train distill'")
        return dataclasses.replace(run, distillation=dataclasses.replace(run.distillation, **given))

    def _named(self) -> dict[str, str]:
        return {name: str(path) for name, path in self.sources.items()}

"""Packs trained weights for distribution: half precision, hashed, with documentation.

A folder has ``config.json``, ``diffusion_pytorch_model.safetensors``, ``Wan2.1_VAE.safetensors``
and ``audio_encoder/``, which every command accepts; and in addition ``README.md``, the data card,
``training.jsonl``, the log of all trainings, ``evaluation.json`` and ``SHA256SUMS``.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import read_json
from livetalk_kernels.outputs import json_bytes, new_file, write_json, write_text

from ...config import read_config
from ...weights.checkpoint import AUDIO_FOLDER, DIT_CONFIG, SAFE_VAE_FILE, CheckpointFolder
from ...weights.manifest import write_manifest
from ...weights.safetensors_file import TensorSpec, write_safetensors
from ...weights.tensor_files import open_weights
from ..audio.export import AUDIO_CONFIG, AUDIO_WEIGHTS
from ..data.clips import INDEX, read_index
from ..demo import Kind
from ..faces.mouth import FPS
from ..loop.records import METRICS, read_records
from ..loop.training import read_folder
from ..settings import RESOLVED
from .export import DIT_FILE
from .trimming import trim

SUMS = "SHA256SUMS"
CARD = "README.md"
LOG = "training.jsonl"
EVALUATION = "evaluation.json"
MOST_BYTES = 12_000_000
"""Limit for all files together."""
_LINES = 60  # maximum per training in the log
_LABEL = "checkpoint"  # as in 'livetalk doctor --verify-manifest'


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The result of packing.

    Attributes:
        folder: Target folder.
        bytes: Size of each file, by its path in the folder.
        lost: Largest rounding difference, per file, relative to a tensor's largest value.
    """

    folder: Path
    bytes: Mapping[str, int]
    lost: Mapping[str, float]


def pack(
    run: Path,
    target: Path,
    *,
    evaluation: Path | None = None,
    note: str = "",
    dtype: torch.dtype = torch.float16,
    most_bytes: int = MOST_BYTES,
) -> Packed:
    """Pack the results of a finished ``train teacher`` or ``distill`` as bundled weights.

    Args:
        run: The run's folder.
        target: Target folder; an existing one is replaced atomically.
        evaluation: Output of ``livetalk evaluate --json`` for it.
        note: Explanation for the data card of how these runs came about.
        dtype: Dtype of the weights.
        most_bytes: Limit for all files together.

    Raises:
        UserError: The run is unfinished, a weight does not fit in the dtype, or the total is too
            large; then nothing is changed.
    """
    source = CheckpointFolder(run)
    if source.own is None or source.audio_encoder is None:
        raise UserError(
            f"{run}: is not a finished run of 'livetalk train teacher' or 'distill'; give the "
            "folder of one"
        )
    runs = trained_before(run)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as place:
        folder = Path(place) / target.name
        dit, config = trim(_read(source.dit), read_config(source.path / DIT_CONFIG), source.own)
        lost = {
            name: _write(weights, folder / name, dtype)
            for name, weights in (
                (DIT_FILE, dit),
                (SAFE_VAE_FILE, _read(source.vae)),
                (f"{AUDIO_FOLDER}/{AUDIO_WEIGHTS}", _read(source.audio_encoder)),
            )
        }
        write_json(folder / DIT_CONFIG, config)
        audio_config = read_config(source.audio_encoder / AUDIO_CONFIG)
        write_json(folder / AUDIO_FOLDER / AUDIO_CONFIG, audio_config)
        found = None
        if evaluation is not None:
            found = read_json(evaluation, "evaluation", cure="evaluate again")
            write_json(folder / EVALUATION, found)
        with new_file(folder / LOG) as log:
            log.writelines(_log(runs))
        write_text(folder / CARD, data_card(runs, dtype, evaluated=found is not None, note=note))
        write_manifest(folder / SUMS, {_LABEL: folder}, lambda name, count: None)
        sizes = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        if sum(sizes.values()) > most_bytes:
            raise UserError(
                f"{run}: takes {sum(sizes.values())} bytes in {dtype}, {most_bytes} at most; train "
                "a smaller model"
            )
        old = Path(place) / "old"
        if target.exists():
            target.rename(old)
        folder.rename(target)
    return Packed(folder=target, bytes=sizes, lost=lost)


def trained_before(run: Path) -> Mapping[Kind, Path]:
    """Collect the folders of the trainings behind a teacher or student, in order, itself last.

    Raises:
        UserError: One of them is missing or not a run.
    """
    about, _ = read_folder(run)
    names: Mapping[Kind, str] = {"vae": "vae", "audio": "audio_encoder", "teacher": "teacher"}
    needed = {kind: name for kind, name in names.items() if kind != about.kind}
    missing = [name for name in needed.values() if name not in about.sources]
    if missing or about.kind not in ("teacher", "distill"):
        raise UserError(
            f"{run}: is not a run of 'livetalk train teacher' or 'distill' with its sources"
        )
    return {kind: Path(about.sources[name]) for kind, name in needed.items()} | {about.kind: run}


def data_card(
    runs: Mapping[Kind, Path], dtype: torch.dtype, *, evaluated: bool, note: str = ""
) -> str:
    """Describe in Markdown what the weights are made from and what they are for."""
    last = list(runs.values())[-1]
    index = read_index(Path(read_folder(last)[0].data) / INDEX)
    height, width = index.size
    seconds = sum(entry.frames for entry in index.clips) / FPS
    made = ", ".join(f"{name} {value}" for name, value in index.settings.items())
    rows = [
        f"| {kind} | {read_folder(folder)[1].steps} | {_seconds(folder) / 60:.0f} |"
        for kind, folder in runs.items()
    ]
    return "\n".join(
        [
            "# Weights of the preset `demo`",
            "",
            f"A talking drawing of {height} x {width} pixels, trained on a CPU by `livetalk "
            f"train`; weights in {str(dtype).removeprefix('torch.')}. "
            "Apache-2.0, as the code.",
            "",
            "**For**: seeing the whole system at work. **Not for** real faces: it has seen nobody "
            "but drawings of one painter, from the front, and nothing of it was learnt from the "
            "published checkpoints.",
            "",
            f"**Data**: {len(index.clips)} drawn clips, {seconds:.0f} s ({made}). Faces, texts and "
            "voices of the test split are in none of them. The speech is synthetic, by "
            "espeak-ng; there is no recording of a person.",
            "",
            "| training | updates | minutes |",
            "|---|---|---|",
            *rows,
            "",
            *([note, ""] if note else []),
            f"Every training's settings and metrics are in `{LOG}`"
            + (f", the evaluation on held-out clips in `{EVALUATION}`." if evaluated else ".")
            + f" `livetalk doctor --checkpoint DIR --verify-manifest DIR/{SUMS}` checks the files.",
            "",
        ]
    )


def _read(source: Path) -> Mapping[str, Tensor]:
    with open_weights(source) as files:
        return {key: files.read(key).float().clone() for key in files.shapes}


def _write(weights: Mapping[str, Tensor], target: Path, dtype: torch.dtype) -> float:
    """Write weights as safetensors in a dtype; return the largest rounding difference.

    Raises:
        UserError: A weight does not fit in the dtype.
    """
    lost, entries = 0.0, []
    for key, value in weights.items():
        rounded = value.to(dtype)
        if not rounded.isfinite().all():
            raise UserError(f"{target.name}: {key} does not fit into {dtype}; take bfloat16")
        if value.numel():
            off = (rounded.float() - value).abs().max() / value.abs().max().clamp_min(1e-30)
            lost = max(lost, float(off))
        entries.append(_entry(key, (tuple(value.shape), dtype), rounded))
    with new_file(target) as file:
        write_safetensors(file, entries, {"format": "pt"})
    return lost


def _entry(key: str, spec: TensorSpec, value: Tensor) -> tuple[str, TensorSpec, Any]:
    return key, spec, lambda: value


def _log(runs: Mapping[Kind, Path]) -> Sequence[bytes]:
    """Format each training's settings, and some of its metrics, one per line."""
    lines = []
    for kind, folder in runs.items():
        settings = (folder / RESOLVED).read_text("utf-8")
        lines.append(json_bytes({"training": kind, "settings": settings}))
        metrics = read_records(folder / METRICS)
        every = -(-len(metrics) // _LINES)
        kept = metrics[::-1][:: max(every, 1)][::-1]  # including the last one
        lines += [json_bytes({"training": kind, **entry}) for entry in kept]
    return lines


def _seconds(folder: Path) -> float:
    return sum(float(entry["seconds"]) for entry in read_records(folder / METRICS))

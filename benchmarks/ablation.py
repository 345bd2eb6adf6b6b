r"""Distil with several histories at one budget of forward passes, and compare the streams.

    python benchmarks/ablation.py --data clips --held-out held-out --vae runs/vae \
        --audio-encoder runs/audio --teacher runs/teacher --output ablation

Recipes: ``k1`` learns only from the true past, ``k5`` from its own past of up to four chunks,
``k5-noised`` likewise with noise on the motion latents that the scores see, and in ``oracle`` the
teacher sees the true past and the student is regressed to the truth. Each is distilled once per
seed by ``livetalk train distill``, and streamed by ``livetalk evaluate``, all in separate
processes. Finished runs are kept, unfinished ones resumed: run the same command again to continue.
The table compares the means over a recipe's runs; intervals are over its seeds.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from training_runs import is_done, train_words

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import REPORT_BYTES, is_file, read_json
from livetalk_kernels.outputs import write_text
from livetalk_model.train.config import Distillation
from livetalk_model.train.cost import STUDENT
from livetalk_model.train.demo import SETTINGS
from livetalk_model.train.settings import Run

LIVETALK = (sys.executable, "-m", "livetalk_model")
# A short budget: the student learns at every second update, faster, and is averaged over fewer.
QUICK: Mapping[str, Any] = MappingProxyType(
    {**SETTINGS["distill"], "learning_rate": 1e-4, "critic_rate": 2e-4, "average": 0.8}
)
BASE: Distillation = replace(QUICK["distillation"], generator_every=2)
RECIPES: Mapping[str, Distillation] = MappingProxyType(
    {
        "k1": replace(BASE, chunks=1),
        "k5": replace(BASE, chunks=5),
        "k5-noised": replace(BASE, chunks=5, score_motion="noised"),
        "oracle": replace(BASE, chunks=5, history="oracle", regression=0.25),
    }
)
"""The first is the baseline of the others; the weight of the regression is ours."""
ROWS: Sequence[tuple[str, str, str]] = (
    ("contraction", "all", "lambda: what remains of an error in the past after a chunk"),
    ("whole", "mouth_without_loudness", "mouth and truth, loudness removed: correlation"),
    ("change", "away", "last minute minus first: distance from the portrait, CIEDE2000"),
    ("change", "picture_db", "last minute minus first: picture, dB"),
    ("change", "saturation", "last minute minus first: chroma relative to the truth"),
    ("slope", "away", "distance from the portrait, CIEDE2000 per minute"),
    ("mean", "seam", "jump into a chunk relative to its neighbours"),
    ("mean", "sharpness", "gradient energy in the face relative to the truth"),
    ("mean", "identity", "colours of skin, hair, wall and clothes, CIEDE2000"),
    ("whole", "blink_ratio", "blinks relative to the data"),
)
"""Group, measure and description in the table."""


def updates(method: Distillation, budget: float) -> int:
    """Count the fake score's updates within a budget of forward passes per sample."""
    many = 1000
    stage = replace(STUDENT, updates=many, every=method.generator_every, chunks=method.chunks)
    return max(method.generator_every, round(budget * many / stage.forwards))


def settings(recipe: str, seed: int, budget: float) -> Run:
    """Build the settings of a run."""
    method = RECIPES[recipe]
    chosen = {"seed": seed, "steps": updates(method, budget), "distillation": method}
    return Run(**{**QUICK, **chosen})


def distil(args: argparse.Namespace, recipe: str, seed: int) -> Path:
    """Make a run, or the rest of it; return its folder.

    Raises:
        UserError: It was begun with another budget.
    """
    folder = args.output / f"{recipe}-{seed}"
    run = settings(recipe, seed, args.forwards)
    if not is_done(folder, "distill", run):
        sources = {
            "data": args.data, "vae": args.vae, "audio-encoder": args.audio_encoder,
            "teacher": args.teacher,
        }  # fmt: skip
        _run([*LIVETALK, *train_words(folder, "distill", run, sources)])
    return folder


def evaluate(args: argparse.Namespace, name: str, folders: Sequence[Path], chunks: int) -> Path:
    """Stream the runs of a recipe; return the report's path."""
    output = args.output / f"{name}-{chunks}"
    report = output.with_name(f"{output.name}.json")
    if not is_file(report):
        _run(
            [
                *LIVETALK, "evaluate", "--data", str(args.held_out), "--chunks", str(chunks),
                "--streams", "1", "--color-correction", "off", "--output", str(output),
                "--checkpoint", *map(str, folders),
            ]
        )  # fmt: skip
    return report


def table(reports: Mapping[str, Mapping[str, Any]], *, correction: str = "off") -> list[str]:
    """Format Markdown with a row per measure, a column per recipe; without colour correction."""
    lines = [f"| measure | {' | '.join(reports)} |", "|---" * (len(reports) + 1) + "|"]
    for group, measure, words in ROWS:
        found = [
            report["models"]["this"]["summary"][correction][group].get(measure)
            for report in reports.values()
        ]
        lines.append(f"| {words} | {' | '.join(map(_cell, found))} |")
    lost = [
        [stream["collapsed_in_chunk"] for stream in report["models"]["this"]["streams"]
         if stream["color_correction"] == correction]
        for report in reports.values()
    ]  # fmt: skip
    cells = [f"{sum(at is not None for at in own)} of {len(own)}" for own in lost]
    return [*lines, f"| streams whose picture was lost | {' | '.join(cells)} |"]


def page(args: argparse.Namespace, reports: Mapping[int, Mapping[str, Any]]) -> str:
    """Format the page of the whole ablation."""
    first = next(iter(next(iter(reports.values())).values()))
    where = first["machine"]
    steps = {recipe: updates(RECIPES[recipe], args.forwards) for recipe in args.recipes}
    counted = ", ".join(f"{recipe} {count}" for recipe, count in steps.items())
    lines = [
        "# Retrospective self-correction against other histories",
        "",
        f"Each run has {args.forwards:g} forward passes of the transformer for a sample (updates: "
        f"{counted}), and {len(args.seeds)} seeds; VAE, audio encoder and teacher are the same. "
        "Brackets are 95 % intervals over the seeds. Colours are not corrected.",
        "",
        f"{where['gpu'] or where['cpu']}, torch {where['torch']}, commit {where['commit']}.",
    ]
    for chunks, found in reports.items():
        lines += ["", f"## Streams of {chunks} chunks ({chunks * 1.12:.0f} s)", "", *table(found)]
    return "\n".join(lines) + "\n"


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["mean"] is None:
        return "-"
    ends = "" if entry["low"] is None else f" [{entry['low']:.3g}, {entry['high']:.3g}]"
    return f"{entry['mean']:.3g}{ends}"


def _run(command: Sequence[str]) -> None:
    print(" ".join(command[2:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def main() -> int:
    """Distil, stream, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, words in (
        ("--data", "clips to train with"),
        ("--held-out", "clips of the test split"),
        ("--vae", "run that trained it"),
        ("--audio-encoder", "run that trained it"),
        ("--teacher", "run that trained it"),
        ("--output", "folder of runs and reports"),
    ):
        parser.add_argument(name, type=Path, required=True, metavar="DIR", help=words)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--forwards",
        type=float,
        default=2000.0,
        metavar="N",
        help="forward passes per run (default: 2000)",
    )
    parser.add_argument(
        "--chunks",
        type=int,
        default=300,
        metavar="N",
        help="length of one stream per seed (default: 300)",
    )
    parser.add_argument(
        "--long", type=int, default=1000, metavar="N",
        help="length of a stream of k1's and k5's first seed (default: 1000); 0 for none",
    )  # fmt: skip
    args = parser.parse_args()
    try:
        print(compare(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(args: argparse.Namespace) -> Path:
    """Distil and stream what is missing; return the page about all.

    Raises:
        UserError: A run was begun with other settings, or a file is invalid.
    """
    args.output.mkdir(parents=True, exist_ok=True)
    runs = {recipe: [distil(args, recipe, seed) for seed in args.seeds] for recipe in args.recipes}
    streamed = {
        args.chunks: {name: evaluate(args, name, own, args.chunks) for name, own in runs.items()}
    }
    if args.long:
        streamed[args.long] = {
            name: evaluate(args, name, runs[name][:1], args.long)
            for name in ("k1", "k5")
            if name in runs
        }
    reports = {
        chunks: {
            name: read_json(file, "report", cure="remove it and run again", limit=REPORT_BYTES)
            for name, file in files.items()
        }
        for chunks, files in streamed.items()
        if files
    }
    target = args.output / "ablation.md"
    write_text(target, page(args, reports))
    return target


if __name__ == "__main__":
    sys.exit(main())

"""``livetalk plan --train``: forecast the memory and time of training."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import UserError
from livetalk_kernels.gpus import get_gpu
from livetalk_kernels.units import big_count, data_size

from . import common

if TYPE_CHECKING:
    from ..train.cost import Cost

WORDS = {"adamw": "AdamW", "adamw8bit": "AdamW, 8 bits"}


def plan_training(args: argparse.Namespace) -> int:
    """Print the costs of both stages.

    Returns:
        0.

    Raises:
        UserError: The GPU, the preset or the size is invalid.
    """
    from ..config import get_preset
    from ..plan.parameters import parameters
    from ..train.cost import SIZE, STUDENT, TEACHER, TIMED, Optimizer, cost, forecast_of

    preset, gpu = get_preset(args.preset or "14b"), get_gpu(args.gpu)
    gpus, size = args.gpus or 8, args.size or SIZE
    if size[0] % 16 or size[1] % 16 or 0 in size:
        raise UserError(f"--size {size[0]}x{size[1]}: must be multiples of 16")
    count = parameters(preset.dit, preset.vae, preset.audio)["DiT"].count
    optimizers: tuple[Optimizer, ...] = ("adamw", "adamw8bit")
    rows = [
        (optimizer, cost(stage, preset.dit, count, gpu, gpus, size=size, optimizer=optimizer))
        for stage in (TEACHER, STUDENT)
        for optimizer in optimizers
    ]
    timed = []
    if preset.name == "14b":
        timed = [
            {"source": run.source, "hours": run.hours,
             "forecast": forecast_of(run, preset.dit, count)}
            for run in TIMED
        ]  # fmt: skip
    capacity = gpu.memory.value
    if args.json:
        common.print_json(
            {
                "forecast": True,
                "settings": {
                    "preset": preset.name, "parameters": count, "gpu": gpu.name, "gpus": gpus,
                    "size": list(size),
                },
                "capacity": capacity,
                "stages": [_as_json(optimizer, row, capacity) for optimizer, row in rows],
                "timed": timed,
            }
        )  # fmt: skip
        return 0
    title = f"Training {preset.name} ({big_count(count)} parameters) at "
    _print(f"{title}{size[0]}x{size[1]}, {gpus} x {gpu.title}", rows, capacity)
    for run in timed:
        common.console().print(
            f"- {run['source']}: {run['hours']} h, these formulas: {run['forecast']:.1f} h",
            markup=False,
        )
    return 0


def _as_json(optimizer: str, row: "Cost", capacity: float) -> dict[str, Any]:
    return {
        "stage": row.stage.name,
        "optimizer": optimizer,
        "updates": row.stage.updates,
        "batch": row.stage.batch,
        "states": row.states,
        "work": row.work,
        "memory": row.memory,
        "fits": row.memory <= capacity,
        "flops": row.flops,
        "seconds": row.seconds,
    }


def _print(title: str, rows: "Sequence[tuple[str, Cost]]", capacity: float) -> None:
    from .tables import plain_table

    out = common.console()
    out.print("[bold]Forecast, not measured[/]; untested on a GPU.")
    columns = ("stage", "optimizer", ">states", ">work", ">memory", ">time")
    table = plain_table(title, columns)
    for optimizer, row in rows:
        memory = data_size(round(row.memory))
        table.add_row(
            f"{row.stage.name}, {row.stage.updates} x {row.stage.batch}",
            WORDS[optimizer],
            data_size(round(row.states)),
            data_size(round(row.work)),
            memory if row.memory <= capacity else f"[red]{memory} ![/]",
            f"{row.seconds / 3600:.1f} h",
        )
    out.print(table)
    notes = (
        "Per GPU: states are weights, gradients and optimizer states, sharded over all; work is "
        "gathered weights and activations for one sample. Stage 2 updates the student every "
        "fifth time."
    )
    if any(row.memory > capacity for _, row in rows):
        notes += f" !: does not fit {data_size(round(capacity))}."
    out.print(notes)
